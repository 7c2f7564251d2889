"""Searches over hyperparameters: what to try, what to give up, and who drives the runs."""
