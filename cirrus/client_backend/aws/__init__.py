"""The AWS side of a client: packages, deployment, and the backend that runs shards and workers there."""
