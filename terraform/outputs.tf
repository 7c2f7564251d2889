# What `cirrus` reads; the names are fields of cirrus.client_backend.aws.deployment.Deployment.

output "name" {
  description = "Name of the deployment."
  value       = var.name
}

output "region" {
  description = "Region of everything."
  value       = local.region
}

output "availability_zone" {
  description = "Zone of functions and shard servers."
  value       = local.zone
}

output "bucket" {
  description = "Name of the bucket for data, runs and models."
  value       = aws_s3_bucket.this.id
}

output "architecture" {
  description = "Processor of functions and shard servers."
  value       = var.architecture
}

output "worker_functions" {
  description = "Name of the worker function of each memory size in MB."
  value       = { for size, function in aws_lambda_function.worker : size => function.function_name }
}

output "launch_template_id" {
  description = "Launch template of the shard servers."
  value       = aws_launch_template.server.id
}

output "instance_type" {
  description = "Type of the shard servers."
  value       = local.instance_type
}

output "disk_gb" {
  description = "Size of a shard server's disk in GB."
  value       = var.disk_gb
}

output "subnet_id" {
  description = "Subnet of functions and shard servers."
  value       = local.subnet_id
}

output "keep_warm_seconds" {
  description = "How long a shard server waits for its next run."
  value       = var.keep_warm_seconds
}

output "spot" {
  description = "Whether shard servers are spot instances by default."
  value       = var.spot
}

output "client_policy_arn" {
  description = "Policy for people who start, watch and end runs."
  value       = aws_iam_policy.client.arn
}
