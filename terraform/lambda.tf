# One worker function for each memory size: memory belongs to a function, not to a call.

resource "aws_cloudwatch_log_group" "worker" {
  #checkov:skip=CKV_AWS_158:Logs hold no data and no secrets; a KMS key costs a dollar a month
  #checkov:skip=CKV_AWS_338:Two weeks of logs are enough to find out why a run failed; longer is the user's choice
  for_each          = local.functions
  name              = "/aws/lambda/${each.value}"
  retention_in_days = var.log_retention_days
}

locals {
  functions = { for size in var.worker_memory_mb : tostring(size) => "${var.name}-worker-${size}" }
}

resource "aws_lambda_function" "worker" {
  #checkov:skip=CKV_AWS_50:Traces of calls that last minutes tell nothing that the run's metrics do not
  #checkov:skip=CKV_AWS_115:reserved_concurrency is the user's choice; new accounts refuse any reservation
  #checkov:skip=CKV_AWS_116:Calls are synchronous: their caller sees each failure, and no letter is ever dead
  #checkov:skip=CKV_AWS_173:The environment holds no secrets
  #checkov:skip=CKV_AWS_272:The bucket's packages are written by this deployment alone, by hash
  for_each                       = local.functions
  function_name                  = each.value
  description                    = "Cirrus worker with ${each.key} MB"
  role                           = aws_iam_role.worker.arn
  handler                        = "cirrus_lambda.handler"
  runtime                        = "python${var.python_version}"
  architectures                  = [var.architecture]
  memory_size                    = tonumber(each.key)
  timeout                        = 900
  reserved_concurrent_executions = var.reserved_concurrency == null ? -1 : var.reserved_concurrency
  s3_bucket                      = aws_s3_object.worker.bucket
  s3_key                         = aws_s3_object.worker.key
  source_code_hash               = filebase64sha256(var.worker_package)

  vpc_config {
    subnet_ids         = [local.subnet_id]
    security_group_ids = [aws_security_group.worker.id]
  }

  environment {
    variables = {
      # Workers are parallel as functions; threads of the numeric libraries would only get in their way.
      OMP_NUM_THREADS      = "1"
      OPENBLAS_NUM_THREADS = "1"
      # Keep the memory of minibatches instead of returning it to the system every step.
      MALLOC_TRIM_THRESHOLD_ = "268435456"
      MALLOC_MMAP_THRESHOLD_ = "134217728"
    }
  }

  depends_on = [aws_cloudwatch_log_group.worker, aws_iam_role_policy.worker, aws_vpc_endpoint.s3]
}
