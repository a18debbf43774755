"""Derives seeds from a seed with numpy's SeedSequence.

With sums such as seed + number, neighbouring seeds would overlap: trial 1 of seed 0 would be trial 0 of seed 1.
"""

import numpy as np


def derive(seed: int, *path: int) -> int:
    """Derives the seed of one random process, identified by `path`, such as (epoch, 0).

    It has 32 bits, which torch, numpy and Optuna all accept.
    """
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1)[0])
