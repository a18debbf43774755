"""Confidence intervals of error rates, and tests of whether one recogniser reads the same images better than another.

`wrong` marks the images that are misread: bool (N,) for one run, or (S, N) for S runs with different seeds.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, chi2, fisher_exact, t


def interval(wrong: int, images: int) -> tuple[float, float]:
    """95 % confidence interval of an error rate: Wilson's score interval (Wilson 1927, "Probable Inference")."""
    ends = binomtest(wrong, images).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def p_value(wrong: np.ndarray, other_wrong: np.ndarray) -> float:
    """p value of McNemar's exact test (McNemar 1947): the probability that two equally good recognisers differ at least
    this much on these images.

    Both are bool (N,), of the same images in the same order. 1 if they differ on no image.
    """
    only_first = int((wrong & ~other_wrong).sum())
    only_second = int((other_wrong & ~wrong).sum())
    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def difference_p_value(wrong: int, images: int, other_wrong: int, other_images: int) -> float:
    """p value of Fisher's exact test (Fisher 1922): the probability that two kinds of images that are equally hard have
    error rates that differ at least this much."""
    table = [[wrong, images - wrong], [other_wrong, other_images - other_wrong]]
    return float(fisher_exact(table).pvalue)


def stratified_p_value(wrong: np.ndarray, these: np.ndarray, strata: np.ndarray) -> float:
    """p value of the Cochran-Mantel-Haenszel test (Mantel & Haenszel 1959), with continuity correction: like
    `difference_p_value`, but compares images only within strata, so that what strata differ in does not count.

    All are (N,) of the same images: bool, bool, and each image's stratum.
    """
    excess, variance = 0.0, 0.0
    for stratum in np.unique(strata):
        inside = strata == stratum
        count, chosen, errors = (int(part.sum()) for part in (inside, inside & these, inside & wrong))
        if count > 1:
            excess += int((inside & these & wrong).sum()) - chosen * errors / count
            variance += chosen * (count - chosen) * errors * (count - errors) / (count**2 * (count - 1))
    return float(chi2.sf(max(0.0, abs(excess) - 0.5) ** 2 / variance, 1)) if variance else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for multiple tests (Holm 1979): the probability that chance alone brings any of them below
    0.05 is at most 5 %."""
    corrected, least = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = least
    return corrected


class SeedsAndImages:
    """Intervals and tests for mean errors of configs that were each trained with several seeds and read the same
    images. `wrong` has one bool (S, N) per config.

    A mean error varies with the seeds and with the images. The variance between seeds is pooled over all configs,
    because two or three runs estimate it poorly. Both variances are added, with Satterthwaite's degrees of freedom
    (1946).
    """

    def __init__(self, wrong: Sequence[np.ndarray]) -> None:
        spread = [(w.mean(axis=1).var(ddof=1) * (len(w) - 1), len(w) - 1) for w in wrong if len(w) > 1]
        self._freedom = sum(freedom for _, freedom in spread)
        self._of_seeds = sum(squares for squares, _ in spread) / self._freedom if self._freedom else 0.0

    def interval(self, wrong: np.ndarray) -> tuple[float, float]:
        """95 % confidence interval of the mean error over all seeds and images like these."""
        error, freedom = self._error(1 / len(wrong), wrong.mean(axis=0))
        mean, reach = float(wrong.mean()), float(t.ppf(0.975, freedom)) * error
        return max(0.0, mean - reach), min(1.0, mean + reach)

    def p_value(self, wrong: np.ndarray, other_wrong: np.ndarray) -> float:
        """p value of a two-sided t test: the probability that two equally good configs differ at least this much."""
        per_image = wrong.mean(axis=0) - other_wrong.mean(axis=0)
        error, freedom = self._error(1 / len(wrong) + 1 / len(other_wrong), per_image)
        difference = abs(float(per_image.mean()))
        if error == 0:
            return 1.0 if difference == 0 else 0.0
        return float(2 * t.sf(difference / error, freedom))

    def _error(self, seeds: float, per_image: np.ndarray) -> tuple[float, float]:
        """Standard error of a mean and its degrees of freedom. `seeds`: the sum of 1/S, by which the variance
        between seeds is multiplied. With one image, whose variance is unknown, the error is infinite, so that the
        interval is 0 to 1 and p is 1."""
        count = len(per_image)
        if count < 2:
            return math.inf, 1.0
        parts = [(self._of_seeds * seeds, self._freedom), (float(per_image.var(ddof=1)) / count, count - 1)]
        total = sum(variance for variance, _ in parts)
        freedom = total**2 / sum(variance**2 / known for variance, known in parts if known) if total else 1.0
        return total**0.5, freedom
