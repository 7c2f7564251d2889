# Two roles, for functions and for shard servers, and a policy for the people who start runs.

data "aws_iam_policy_document" "worker_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["lambda.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "server_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.${data.aws_partition.current.dns_suffix}"]
    }
  }
}

# What functions and servers do with the bucket. Neither may change what the other is made of.
data "aws_iam_policy_document" "objects" {
  statement {
    sid       = "Objects"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.this.arn}/*"]
  }

  statement {
    sid       = "Lists"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this.arn]
  }

  statement {
    sid       = "PackagesAreReadOnly"
    effect    = "Deny"
    actions   = ["s3:PutObject", "s3:DeleteObject"]
    resources = ["${aws_s3_bucket.this.arn}/packages/*", "${aws_s3_bucket.this.arn}/cirrus/*"]
  }

  dynamic "statement" {
    for_each = length(var.data_buckets) > 0 ? [1] : []

    content {
      sid       = "DataBuckets"
      actions   = ["s3:GetObject", "s3:ListBucket"]
      resources = flatten([for name in var.data_buckets : ["${local.arn}:s3:::${name}", "${local.arn}:s3:::${name}/*"]])
    }
  }
}

data "aws_iam_policy_document" "worker" {
  source_policy_documents = [data.aws_iam_policy_document.objects.json]

  statement {
    sid       = "Logs"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = [for group in aws_cloudwatch_log_group.worker : "${group.arn}:*"]
  }

  # Lambda makes and removes the network interfaces of a function in its name.
  statement {
    #checkov:skip=CKV_AWS_111:These actions of EC2 cannot be limited to resources that do not exist yet
    #checkov:skip=CKV_AWS_356:These actions of EC2 know no resources, or none before they have run
    sid = "NetworkInterfaces"
    actions = [
      "ec2:AssignPrivateIpAddresses",
      "ec2:CreateNetworkInterface",
      "ec2:DeleteNetworkInterface",
      "ec2:DescribeNetworkInterfaces",
      "ec2:DescribeSubnets",
      "ec2:UnassignPrivateIpAddresses",
    ]
    resources = ["*"]
  }

  # The code inside the function shares its role, but has no use for those.
  statement {
    sid       = "NoNetworkInterfacesForTheCode"
    effect    = "Deny"
    actions   = ["ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface", "ec2:DescribeNetworkInterfaces"]
    resources = ["*"]

    condition {
      test     = "ArnLike"
      variable = "lambda:SourceFunctionArn"
      values   = ["${local.arn}:lambda:${local.region}:${local.account}:function:${var.name}-worker-*"]
    }
  }
}

resource "aws_iam_role" "worker" {
  name               = "${var.name}-worker-${local.region}"
  description        = "Cirrus worker functions"
  assume_role_policy = data.aws_iam_policy_document.worker_trust.json
}

resource "aws_iam_role_policy" "worker" {
  name   = "worker"
  role   = aws_iam_role.worker.id
  policy = data.aws_iam_policy_document.worker.json
}

resource "aws_iam_role" "server" {
  name               = "${var.name}-server-${local.region}"
  description        = "Cirrus shard servers"
  assume_role_policy = data.aws_iam_policy_document.server_trust.json
}

resource "aws_iam_role_policy" "server" {
  name   = "server"
  role   = aws_iam_role.server.id
  policy = data.aws_iam_policy_document.objects.json
}

resource "aws_iam_instance_profile" "server" {
  name = "${var.name}-server-${local.region}"
  role = aws_iam_role.server.name
}

data "aws_iam_policy_document" "client" {
  statement {
    sid       = "Objects"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.this.arn}/*"]
  }

  statement {
    sid       = "Lists"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this.arn]
  }

  statement {
    sid       = "PackagesAreReadOnly"
    effect    = "Deny"
    actions   = ["s3:PutObject", "s3:DeleteObject"]
    resources = ["${aws_s3_bucket.this.arn}/packages/*", "${aws_s3_bucket.this.arn}/cirrus/*"]
  }

  statement {
    sid       = "Workers"
    actions   = ["lambda:InvokeFunction", "lambda:GetFunctionConfiguration", "lambda:GetFunctionConcurrency"]
    resources = [for function in aws_lambda_function.worker : function.arn]
  }

  statement {
    sid       = "LaunchServers"
    actions   = ["ec2:RunInstances"]
    resources = ["${local.arn}:ec2:${local.region}:${local.account}:*/*", "${local.arn}:ec2:${local.region}::image/*"]

    condition {
      test     = "ArnEquals"
      variable = "ec2:LaunchTemplate"
      values   = [aws_launch_template.server.arn]
    }
  }

  statement {
    sid       = "TagServersAtLaunch"
    actions   = ["ec2:CreateTags"]
    resources = ["${local.arn}:ec2:${local.region}:${local.account}:*/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances"]
    }
  }

  statement {
    sid       = "EndServers"
    actions   = ["ec2:TerminateInstances"]
    resources = ["${local.arn}:ec2:${local.region}:${local.account}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/cirrus:deployment"
      values   = [var.name]
    }
  }

  statement {
    sid       = "ServersRole"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.server.arn]
  }

  # The first spot instance of an account makes this role; later ones find it.
  statement {
    sid       = "SpotServersRole"
    actions   = ["iam:CreateServiceLinkedRole"]
    resources = ["${local.arn}:iam::${local.account}:role/aws-service-role/spot.amazonaws.com/*"]

    condition {
      test     = "StringEquals"
      variable = "iam:AWSServiceName"
      values   = ["spot.amazonaws.com"]
    }
  }

  statement {
    sid       = "ServersImage"
    actions   = ["ssm:GetParameters"]
    resources = ["${local.arn}:ssm:${local.region}::parameter/aws/service/ami-amazon-linux-latest/*"]
  }

  statement {
    #checkov:skip=CKV_AWS_356:These actions know no resources
    sid       = "Look"
    actions   = ["ec2:DescribeInstances", "ec2:DescribeSpotPriceHistory", "lambda:GetAccountSettings"]
    resources = ["*"]
  }
}

resource "aws_iam_policy" "client" {
  name        = "${var.name}-client-${local.region}"
  description = "What a user needs to start, watch and end Cirrus runs"
  policy      = data.aws_iam_policy_document.client.json
}
