"""What users call: datasets, estimators, live progress."""
