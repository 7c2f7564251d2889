# How shard servers are launched; clients launch them, and they end themselves.

locals {
  instance_type = coalesce(var.instance_type, var.architecture == "arm64" ? "c7gn.large" : "c6in.large")
  image_id = coalesce(
    var.server_image_id,
    "resolve:ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-${var.architecture}",
  )
}

resource "aws_launch_template" "server" {
  name                                 = "${var.name}-server"
  description                          = "Cirrus shard servers"
  image_id                             = local.image_id
  instance_type                        = local.instance_type
  instance_initiated_shutdown_behavior = "terminate"
  update_default_version               = true
  user_data = base64encode(templatefile("${path.module}/user_data.sh.tftpl", {
    bucket              = aws_s3_bucket.this.id
    client_lost_seconds = var.client_lost_seconds
    first_port          = local.first_port
    keep_warm_seconds   = var.keep_warm_seconds
    max_minutes         = ceil(var.max_hours * 60)
    packages            = "s3://${aws_s3_bucket.this.id}/${local.server_prefix}"
    python              = "python${var.python_version}"
    region              = local.region
  }))

  iam_instance_profile {
    arn = aws_iam_instance_profile.server.arn
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }

  network_interfaces {
    associate_public_ip_address = false
    delete_on_termination       = true
    security_groups             = [aws_security_group.server.id]
    subnet_id                   = local.subnet_id
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      delete_on_termination = true
      encrypted             = true
      volume_size           = var.disk_gb
      volume_type           = "gp3"
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])

    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = var.name, "cirrus:owner" = "cirrus", "cirrus:deployment" = var.name })
    }
  }

  depends_on = [aws_s3_object.server, aws_iam_role_policy.server, aws_vpc_endpoint.s3]
}
