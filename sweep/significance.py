"""How sure an error rate is, and whether one recogniser reads better than another on the same images."""

import numpy as np
from scipy.stats import binomtest


def interval(wrong: int, images: int) -> tuple[float, float]:
    """95 % of an error rate by Wilson's score (Wilson 1927, "Probable Inference")."""
    ends = binomtest(wrong, images).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def p_value(wrong: np.ndarray, other_wrong: np.ndarray) -> float:
    """McNemar's exact test (McNemar 1947): how likely two equally good recognisers differ this much on these images.

    Both bool (N,), of the same images in the same order. 1 if they differ on none.
    """
    only_first = int((wrong & ~other_wrong).sum())
    only_second = int((other_wrong & ~wrong).sum())
    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0
