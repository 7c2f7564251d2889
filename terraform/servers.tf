# How shard servers are launched; clients launch them, and they end themselves.

# Which types there are differs by region and zone, and EC2 tells. Best first, by baseline bandwidth.
data "aws_ec2_instance_type_offerings" "servers" {
  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = local.wanted_types
  }
}

locals {
  preferred_types = {
    arm64  = ["c8gn.large", "c7gn.large", "c6gn.large", "c7g.large"]
    x86_64 = ["c6in.large", "c5n.large", "c6i.large"]
  }
  wanted_types = var.instance_type != null ? [var.instance_type] : local.preferred_types[var.architecture]
  offers       = data.aws_ec2_instance_type_offerings.servers
  zones_of = {
    for type in local.wanted_types : type => sort([
      for i, found in local.offers.instance_types : local.offers.locations[i]
      if found == type && contains(local.zones, local.offers.locations[i])
    ])
  }
  offered_types = [for type in local.wanted_types : type if length(local.zones_of[type]) > 0]
  instance_type = length(local.offered_types) > 0 ? local.offered_types[0] : local.wanted_types[0]
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
    release             = local.server_release
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

  lifecycle {
    precondition {
      condition     = length(local.offered_types) > 0
      error_message = "instance_type: EC2 offers no ${join(" or ", local.wanted_types)} in ${join(", ", local.zones)}: choose another type, zone or region."
    }
  }

  depends_on = [aws_s3_object.server, aws_iam_role_policy.server, aws_vpc_endpoint.s3]
}
