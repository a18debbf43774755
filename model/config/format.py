"""The version of the file formats: sweep.yaml, checkpoints and the Optuna study.

1: version 0.1.0 and earlier, which wrote no number. 2: scores by name, `network.encoder`, `data.cache`.
"""

FORMAT = 2
