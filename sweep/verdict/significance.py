"""How sure an error rate is, and whether one recogniser reads better than another on the same images.

`wrong` says which images are misread: bool (N,) of one run, or (S, N) of S runs with different seeds.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, t


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for being many (Holm 1979): of these, below 0.05 is one by chance in 5 % of such families."""
    corrected, least = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = least
    return corrected


class SeedsAndImages:
    """Mean errors of configs that were each trained with several seeds and read the same images, all bool (S, N).

    A mean varies with the seeds and with the images. The seeds' variance is pooled over the configs, for two or three
    runs alone tell little of it; both parts are summed, and their degrees of freedom are Satterthwaite's (1946).
    """

    def __init__(self, wrong: Sequence[np.ndarray]) -> None:
        spread = [(w.mean(axis=1).var(ddof=1) * (len(w) - 1), len(w) - 1) for w in wrong if len(w) > 1]
        self._freedom = sum(freedom for _, freedom in spread)
        self._of_seeds = sum(squares for squares, _ in spread) / self._freedom if self._freedom else 0.0

    def interval(self, wrong: np.ndarray) -> tuple[float, float]:
        """95 % of the mean error over all seeds and images like these."""
        error, freedom = self._error(1 / len(wrong), wrong.mean(axis=0))
        mean, reach = float(wrong.mean()), float(t.ppf(0.975, freedom)) * error
        return max(0.0, mean - reach), min(1.0, mean + reach)

    def p_value(self, wrong: np.ndarray, other_wrong: np.ndarray) -> float:
        """How likely two equally good configs differ this much."""
        per_image = wrong.mean(axis=0) - other_wrong.mean(axis=0)
        error, freedom = self._error(1 / len(wrong) + 1 / len(other_wrong), per_image)
        difference = abs(float(per_image.mean()))
        if error == 0:
            return 1.0 if difference == 0 else 0.0
        return float(2 * t.sf(difference / error, freedom))

    def _error(self, seeds: float, per_image: np.ndarray) -> tuple[float, float]:
        """Standard error of a mean and its degrees of freedom. One image says nothing of how images differ: the error
        is then infinite, so that an interval is all of 0 to 1 and a p value 1."""
        count = len(per_image)
        if count < 2:
            return math.inf, 1.0
        parts = [(self._of_seeds * seeds, self._freedom), (float(per_image.var(ddof=1)) / count, count - 1)]
        total = sum(variance for variance, _ in parts)
        freedom = total**2 / sum(variance**2 / known for variance, known in parts if known) if total else 1.0
        return total**0.5, freedom
