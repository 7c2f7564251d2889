"""What runs inside a function: the handler, the training loop, the evaluator. Imports numpy and lz4 alone."""
