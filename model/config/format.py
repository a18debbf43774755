"""The version of the formats of sweep.yaml, checkpoints and the study.

1: up to version 0.1.0, without a number in the files. 2: scores by name, `network.encoder`, `data.cache`.
"""

FORMAT = 2
