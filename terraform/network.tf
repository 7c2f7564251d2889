# A VPC without a way to the internet: S3 is reached through a gateway endpoint, which costs nothing, and
# nothing else is needed. With vpc_id and subnet_id, yours is used instead.

locals {
  makes_vpc = var.vpc_id == null
  vpc_id    = local.makes_vpc ? aws_vpc.this[0].id : var.vpc_id
  subnet_id = local.makes_vpc ? aws_subnet.private[0].id : var.subnet_id
  # Where functions and servers may be.
  zones = (
    !local.makes_vpc ? [data.aws_subnet.given[0].availability_zone] :
    var.availability_zone != null ? [var.availability_zone] : sort(data.aws_availability_zones.available[0].names)
  )
  zone       = concat(local.zones_of[local.instance_type], local.zones)[0]
  first_port = 7700
  last_port  = 7799
}

# Not those of local zones, which have neither functions nor most types of instances.
data "aws_availability_zones" "available" {
  count = local.makes_vpc && var.availability_zone == null ? 1 : 0
  state = "available"

  filter {
    name   = "zone-type"
    values = ["availability-zone"]
  }
}

data "aws_subnet" "given" {
  count = local.makes_vpc ? 0 : 1
  id    = var.subnet_id
}

data "aws_prefix_list" "s3" {
  name = "com.amazonaws.${local.region}.s3"
}

resource "aws_vpc" "this" {
  #checkov:skip=CKV2_AWS_11:Flow logs would cost more than everything else here; nothing reaches the internet
  count                = local.makes_vpc ? 1 : 0
  cidr_block           = var.vpc_cidr
  enable_dns_hostnames = true
  enable_dns_support   = true
  tags                 = { Name = var.name }
}

# The group that AWS makes by itself allows everything between its members: take all rules away.
resource "aws_default_security_group" "unused" {
  count  = local.makes_vpc ? 1 : 0
  vpc_id = aws_vpc.this[0].id
}

resource "aws_subnet" "private" {
  count             = local.makes_vpc ? 1 : 0
  vpc_id            = aws_vpc.this[0].id
  cidr_block        = aws_vpc.this[0].cidr_block
  availability_zone = local.zone
  tags              = { Name = "${var.name}-private" }
}

resource "aws_route_table" "private" {
  count  = local.makes_vpc ? 1 : 0
  vpc_id = aws_vpc.this[0].id
  tags   = { Name = "${var.name}-private" }
}

resource "aws_route_table_association" "private" {
  count          = local.makes_vpc ? 1 : 0
  subnet_id      = aws_subnet.private[0].id
  route_table_id = aws_route_table.private[0].id
}

resource "aws_vpc_endpoint" "s3" {
  count             = local.makes_vpc ? 1 : 0
  vpc_id            = aws_vpc.this[0].id
  service_name      = "com.amazonaws.${local.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.private[0].id]
  policy            = data.aws_iam_policy_document.endpoint.json
  tags              = { Name = "${var.name}-s3" }
}

data "aws_iam_policy_document" "endpoint" {
  statement {
    sid       = "OwnBucket"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListBucket"]
    resources = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:PrincipalAccount"
      values   = [local.account]
    }
  }

  dynamic "statement" {
    for_each = length(var.data_buckets) > 0 ? [1] : []

    content {
      sid       = "DataBuckets"
      actions   = ["s3:GetObject", "s3:ListBucket"]
      resources = flatten([for name in var.data_buckets : ["${local.arn}:s3:::${name}", "${local.arn}:s3:::${name}/*"]])

      principals {
        type        = "AWS"
        identifiers = ["*"]
      }
    }
  }

  # Amazon's package repositories are buckets too; requests for packages carry no identity.
  statement {
    sid       = "AmazonLinuxPackages"
    actions   = ["s3:GetObject"]
    resources = ["${local.arn}:s3:::al2023-repos-${local.region}-de612dc2/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }
  }
}

resource "aws_security_group" "worker" {
  #checkov:skip=CKV2_AWS_5:The worker functions use it (lambda.tf); the scan does not follow the network into them
  name        = "${var.name}-worker"
  description = "Cirrus worker functions"
  vpc_id      = local.vpc_id
  tags        = { Name = "${var.name}-worker" }
}

resource "aws_security_group" "server" {
  #checkov:skip=CKV2_AWS_5:The launch template uses it (servers.tf)
  name        = "${var.name}-server"
  description = "Cirrus shard servers"
  vpc_id      = local.vpc_id
  tags        = { Name = "${var.name}-server" }
}

# Amazon Linux' package repositories are in S3 too.
resource "aws_vpc_security_group_egress_rule" "s3" {
  for_each          = { worker = aws_security_group.worker.id, server = aws_security_group.server.id }
  description       = "S3"
  security_group_id = each.value
  prefix_list_id    = data.aws_prefix_list.s3.id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "shards" {
  for_each                     = { worker = aws_security_group.worker.id, server = aws_security_group.server.id }
  description                  = "Shards"
  security_group_id            = each.value
  referenced_security_group_id = aws_security_group.server.id
  ip_protocol                  = "tcp"
  from_port                    = local.first_port
  to_port                      = local.last_port
}

resource "aws_vpc_security_group_ingress_rule" "shards" {
  for_each                     = { worker = aws_security_group.worker.id, server = aws_security_group.server.id }
  description                  = "Shards, for the ${each.key}s of this deployment alone"
  security_group_id            = aws_security_group.server.id
  referenced_security_group_id = each.value
  ip_protocol                  = "tcp"
  from_port                    = local.first_port
  to_port                      = local.last_port
}
