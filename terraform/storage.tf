# One bucket for datasets, runs, models and packages. Whoever destroys the deployment must have emptied it:
# Terraform deletes no data.

locals {
  bucket_name    = var.bucket_name != null ? var.bucket_name : "${var.name}-${local.account}-${local.region}"
  worker_key     = "packages/worker/${filesha256(var.worker_package)}.zip"
  server_release = filesha256("${var.server_package}/requirements.txt")
  server_prefix  = "packages/server/${local.server_release}"
}

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_18:Access logs of a bucket that two roles and its owner use would cost more than they tell
  #checkov:skip=CKV_AWS_21:Runs replace small objects every second; versions of them would pile up
  #checkov:skip=CKV_AWS_144:Datasets are copies of the user's files; a second region would double the price
  #checkov:skip=CKV_AWS_145:Encrypted with keys of S3; a KMS key costs a dollar a month and a fee for each request
  #checkov:skip=CKV2_AWS_62:Nobody listens to events; clients and shards read the run folder
  bucket        = local.bucket_name
  force_destroy = false
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket                  = aws_s3_bucket.this.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_policy" "this" {
  bucket     = aws_s3_bucket.this.id
  policy     = data.aws_iam_policy_document.bucket.json
  depends_on = [aws_s3_bucket_public_access_block.this]
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "EncryptedConnectionsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  dynamic "rule" {
    for_each = toset(["tmp", "scratch", "jobs", "servers"])

    content {
      id     = "${rule.value}-are-temporary"
      status = "Enabled"

      filter {
        prefix = "${rule.value}/"
      }

      expiration {
        # A server's record must outlive the server, however long nobody changes it.
        days = rule.value == "servers" ? max(var.temporary_days, ceil(var.max_hours / 24) + 1) : var.temporary_days
      }

      abort_incomplete_multipart_upload {
        days_after_initiation = 1
      }
    }
  }

  rule {
    id     = "uploads-that-nobody-finished"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
}

resource "aws_s3_object" "worker" {
  #checkov:skip=CKV_AWS_186:Encrypted with keys of S3, as the bucket is
  bucket      = aws_s3_bucket.this.id
  key         = local.worker_key
  source      = var.worker_package
  source_hash = filesha256(var.worker_package)
}

resource "aws_s3_object" "server" {
  #checkov:skip=CKV_AWS_186:Encrypted with keys of S3, as the bucket is
  for_each    = fileset(var.server_package, "*")
  bucket      = aws_s3_bucket.this.id
  key         = "${local.server_prefix}/${each.value}"
  source      = "${var.server_package}/${each.value}"
  source_hash = filesha256("${var.server_package}/${each.value}")
}
