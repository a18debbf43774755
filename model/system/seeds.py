"""Seeds derived from a seed by numpy's SeedSequence.

Sums like seed + number give neighbouring seeds the same numbers: trial 1 of seed 0 would be trial 0 of seed 1.
"""

import numpy as np


def derive(seed: int, *path: int) -> int:
    """The seed of one of the things that `seed` decides, told apart by `path`: 32 bits, which torch, numpy and Optuna
    all take."""
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1)[0])
