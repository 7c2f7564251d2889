"""Runs on a Ray cluster: a controller actor a run, shards as actors, workers and map functions as tasks.

ray is imported in this package and nowhere else. docs/ray.md says which part of Ray is used for what.
"""
