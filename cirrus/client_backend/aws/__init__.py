"""The AWS side of a client: packages, deployment, and the backend that runs shards and workers there.

boto3 is imported in this package and in :mod:`cirrus.storage.s3`, and nowhere else.
"""
