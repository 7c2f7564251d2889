# What `cirrus` reads: the fields of cirrus.client_backend.aws.deployment.Deployment, as outputs for whoever has the
# state, and as an object in the bucket for all others.

locals {
  deployment = {
    name               = var.name
    region             = local.region
    availability_zone  = local.zone
    bucket             = aws_s3_bucket.this.id
    architecture       = var.architecture
    worker_functions   = { for size, function in aws_lambda_function.worker : size => function.function_name }
    launch_template_id = aws_launch_template.server.id
    instance_type      = local.instance_type
    disk_gb            = var.disk_gb
    subnet_id          = local.subnet_id
    keep_warm_seconds  = var.keep_warm_seconds
    server_release     = local.server_release
    spot               = var.spot
  }
}

resource "aws_s3_object" "deployment" {
  #checkov:skip=CKV_AWS_186:Encrypted with keys of S3, as the bucket is
  bucket       = aws_s3_bucket.this.id
  key          = "cirrus/deployment.json"
  content      = jsonencode(local.deployment)
  content_type = "application/json"
}

output "name" {
  description = "Name of the deployment."
  value       = local.deployment.name
}

output "region" {
  description = "Region of everything."
  value       = local.deployment.region
}

output "availability_zone" {
  description = "Zone of functions and shard servers."
  value       = local.deployment.availability_zone
}

output "bucket" {
  description = "Name of the bucket for data, runs and models."
  value       = local.deployment.bucket
}

output "architecture" {
  description = "Processor of functions and shard servers."
  value       = local.deployment.architecture
}

output "worker_functions" {
  description = "Name of the worker function of each memory size in MB."
  value       = local.deployment.worker_functions
}

output "launch_template_id" {
  description = "Launch template of the shard servers."
  value       = local.deployment.launch_template_id
}

output "instance_type" {
  description = "Type of the shard servers."
  value       = local.deployment.instance_type
}

output "disk_gb" {
  description = "Size of a shard server's disk in GB."
  value       = local.deployment.disk_gb
}

output "subnet_id" {
  description = "Subnet of functions and shard servers."
  value       = local.deployment.subnet_id
}

output "keep_warm_seconds" {
  description = "How long a shard server waits for its next run."
  value       = local.deployment.keep_warm_seconds
}

output "server_release" {
  description = "What new shard servers are installed from: a hash of their packages."
  value       = local.deployment.server_release
}

output "spot" {
  description = "Whether shard servers are spot instances by default."
  value       = local.deployment.spot
}

output "client_policy_arn" {
  description = "Policy for people who start, watch and end runs."
  value       = aws_iam_policy.client.arn
}
