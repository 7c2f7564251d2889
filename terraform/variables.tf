variable "name" {
  description = "Prefix of everything's name; several deployments in an account need several."
  type        = string
  default     = "cirrus"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,19}$", var.name))
    error_message = "name: 1 to 20 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "region" {
  description = "AWS region; null: the one that the environment or the profile names."
  type        = string
  default     = null

  validation {
    condition     = var.region == null ? true : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+$", var.region))
    error_message = "region: a region such as eu-central-1."
  }
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition = alltrue([
      for key, value in var.tags :
      can(regex("^[^:].{0,127}$", key)) && length(value) <= 256 && !can(regex("^(?i:aws|cirrus):", key))
    ])
    error_message = "tags: keys of 1 to 128 characters that do not begin with aws: or cirrus:, and values of up to 256."
  }
}

variable "worker_package" {
  description = "Path of the worker function's zip, made by `cirrus package`."
  type        = string

  validation {
    condition     = fileexists(var.worker_package)
    error_message = "worker_package: there is no such file; make it with `cirrus package`."
  }
}

variable "server_package" {
  description = "Path of the shard servers' wheelhouse, made by `cirrus package --server`."
  type        = string

  validation {
    condition     = fileexists("${var.server_package}/requirements.txt")
    error_message = "server_package: there is no requirements.txt in it; make it with `cirrus package --server`."
  }
}

variable "architecture" {
  description = "Processor of the functions and shard servers: arm64 or x86_64. The packages must be made for it."
  type        = string
  default     = "arm64"
  nullable    = false

  validation {
    condition     = contains(["arm64", "x86_64"], var.architecture)
    error_message = "architecture: arm64 or x86_64."
  }
}

variable "python_version" {
  description = "Python of the functions and shard servers. The packages must be made for it."
  type        = string
  default     = "3.13"
  nullable    = false

  validation {
    condition     = contains(["3.12", "3.13"], var.python_version)
    error_message = "python_version: 3.12 or 3.13."
  }
}

variable "worker_memory_mb" {
  description = "Memory sizes in MB; there is one worker function of each. 1769 MB come with one whole processor."
  type        = set(number)
  default     = [1769]
  nullable    = false

  validation {
    condition = length(var.worker_memory_mb) > 0 && alltrue([
      for size in var.worker_memory_mb : size >= 512 && size <= 10240 && floor(size) == size
    ])
    error_message = "worker_memory_mb: at least one whole number of MB from 512 to 10240."
  }
}

variable "reserved_concurrency" {
  description = "Executions reserved for each worker function; null reserves none. New accounts have 10 in all and refuse reservations."
  type        = number
  default     = null

  validation {
    condition     = var.reserved_concurrency == null ? true : var.reserved_concurrency >= 1
    error_message = "reserved_concurrency: a number from 1 on, or null."
  }
}

variable "log_retention_days" {
  description = "How long the functions' logs are kept, in days."
  type        = number
  default     = 14
  nullable    = false

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.log_retention_days)
    error_message = "log_retention_days: one of 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731."
  }
}

variable "bucket_name" {
  description = "Name of the bucket for data, runs and models; null: NAME-ACCOUNT-REGION."
  type        = string
  default     = null

  validation {
    condition     = var.bucket_name == null ? true : can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name: 3 to 63 lower-case letters, digits and hyphens."
  }
}

variable "data_buckets" {
  description = "Names of further buckets that workers may read datasets from."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for name in var.data_buckets : can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", name))])
    error_message = "data_buckets: names of buckets, such as my-data, without s3:// and without a path."
  }
}

variable "temporary_days" {
  description = "After how many days temporary objects (below tmp/, scratch/ and jobs/) are deleted; those below servers/ also outlive max_hours."
  type        = number
  default     = 2
  nullable    = false

  validation {
    condition     = var.temporary_days >= 1 && floor(var.temporary_days) == var.temporary_days
    error_message = "temporary_days: a whole number from 1 on."
  }
}

variable "vpc_id" {
  description = "Your own VPC; null makes one. Yours needs an S3 gateway endpoint in the route table of subnet_id."
  type        = string
  default     = null

  validation {
    condition     = var.vpc_id == null ? true : can(regex("^vpc-[0-9a-f]+$", var.vpc_id))
    error_message = "vpc_id: the id of a VPC, such as vpc-0123456789abcdef0."
  }
}

variable "subnet_id" {
  description = "Subnet of your own VPC for functions and shard servers; null where vpc_id is null."
  type        = string
  default     = null

  validation {
    condition     = (var.subnet_id == null) == (var.vpc_id == null)
    error_message = "subnet_id: give vpc_id and subnet_id, or neither."
  }

  validation {
    condition     = var.subnet_id == null ? true : can(regex("^subnet-[0-9a-f]+$", var.subnet_id))
    error_message = "subnet_id: the id of a subnet, such as subnet-0123456789abcdef0."
  }
}

variable "vpc_cidr" {
  description = "Addresses of the VPC that is made."
  type        = string
  default     = "10.87.0.0/20"
  nullable    = false

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0))
    error_message = "vpc_cidr: a range such as 10.87.0.0/20."
  }
}

variable "availability_zone" {
  description = "Zone of functions and shard servers, both in one: bytes between zones cost more than the functions. Null: the first that has the servers' type."
  type        = string
  default     = null

  validation {
    condition = (
      var.availability_zone == null ? true : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+[a-z]$", var.availability_zone))
    )
    error_message = "availability_zone: a zone such as eu-central-1a."
  }
}

variable "instance_type" {
  description = "Type of the shard servers; null: the first of c8gn.large, c7gn.large, c6gn.large, c7g.large (x86_64: c6in.large, c5n.large, c6i.large) that the region has. Choose by baseline, not burst, bandwidth."
  type        = string
  default     = null

  validation {
    condition     = var.instance_type == null ? true : can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", var.instance_type))
    error_message = "instance_type: a type such as c7gn.large."
  }
}

variable "spot" {
  description = "Whether shard servers are spot instances by default: cheaper, and taken back now and then."
  type        = bool
  default     = false
  nullable    = false
}

variable "server_image_id" {
  description = "Image of the shard servers; null: the newest Amazon Linux 2023 at each launch."
  type        = string
  default     = null

  validation {
    condition = (
      var.server_image_id == null ? true : can(regex("^(ami-[0-9a-f]+|resolve:ssm:/.+)$", var.server_image_id))
    )
    error_message = "server_image_id: an image such as ami-0123456789abcdef0, or resolve:ssm:/PARAMETER."
  }
}

variable "disk_gb" {
  description = "Size of a shard server's disk in GB."
  type        = number
  default     = 16
  nullable    = false

  validation {
    condition     = var.disk_gb >= 8 && floor(var.disk_gb) == var.disk_gb
    error_message = "disk_gb: a whole number from 8 on, which the operating system needs."
  }
}

variable "max_hours" {
  description = "A shard server shuts down after so many hours, whatever happens."
  type        = number
  default     = 24
  nullable    = false

  validation {
    condition     = var.max_hours > 0 && var.max_hours <= 720
    error_message = "max_hours: more than 0, at most 720."
  }
}

variable "keep_warm_seconds" {
  description = "How long a shard server waits for its next run before it shuts down. It costs as much as when it works."
  type        = number
  default     = 300
  nullable    = false

  validation {
    condition     = var.keep_warm_seconds >= 0 && var.keep_warm_seconds <= 86400
    error_message = "keep_warm_seconds: from 0 to 86400."
  }
}

variable "client_lost_seconds" {
  description = "A shard server that has not heard of the run's client for so long saves the run and shuts down."
  type        = number
  default     = 300
  nullable    = false

  validation {
    condition     = var.client_lost_seconds >= 15
    error_message = "client_lost_seconds: at least 15; clients give a sign of life every 3 seconds."
  }
}
