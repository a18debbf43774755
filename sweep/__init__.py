"""Searches hyperparameters of the recogniser with many trials in parallel, and compares them."""
