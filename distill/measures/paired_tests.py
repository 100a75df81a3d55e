"""Whether one method is better than another: paired over seeds, and over the images of one test part.

Two runs of one seed share their labelled images, their order and their first weights, so that the difference of a pair
varies less than either run; all tests here use differences. Computed with scipy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

NO_SPREAD = 1e-6
"""Differences of accuracy up to this are rounding: accuracies are kept as float32. One image in a million counts."""


@dataclass(frozen=True)
class PairedTest:
    """Differences of n pairs, tested against zero."""

    count: int  # n
    mean: float  # of the differences
    # end of the confidence interval of the mean (Student's t, n - 1 degrees of freedom); None if n is 1, or if all
    # differences are equal, so that their spread cannot be estimated
    low: float | None
    high: float | None  # its other end
    # of the two-sided paired t test; None as above, but 1 if all differences are zero
    p: float | None
    better: int  # pairs with a positive difference
    worse: int  # pairs with a negative one; the rest are ties
    # of the two-sided exact sign test, ties left out. Never below 2 / 2^n: 0.25 for three pairs.
    sign_p: float


def paired_test(values: Sequence[float], baseline: Sequence[float]) -> PairedTest:
    """Compare paired numbers, e.g. the accuracies of two methods with the same seeds.

    Args:
        values: (n,) of the method.
        baseline: (n,) of the baseline, in the same order.
    """
    if len(values) != len(baseline) or not len(values):
        raise ValueError(f"{len(values)} values and {len(baseline)} of the baseline: no pairs")
    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    count, mean = len(differences), float(differences.mean())
    better = int((differences > NO_SPREAD).sum())
    worse = int((differences < -NO_SPREAD).sum())
    low = high = p = None
    if count > 1 and differences.std(ddof=1) > NO_SPREAD:
        tested = stats.ttest_1samp(differences, 0.0)
        interval = tested.confidence_interval(0.95)
        low, high, p = float(interval.low), float(interval.high), float(tested.pvalue)
    elif count > 1 and abs(mean) <= NO_SPREAD:
        p = 1.0  # t is 0 / 0; with equal gains it is infinite, and a few equal gains are not certainty
    return PairedTest(count, mean, low, high, p, better, worse, sign_test(better, worse))


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p of this many signs or more one-sided ones, where both signs are equally likely."""
    if better + worse == 0:
        return 1.0
    return float(stats.binomtest(better, better + worse, 0.5).pvalue)


def detectable(count: int) -> float:
    """Smallest mean of n > 1 differences that a paired t test calls significant (5 %), in their standard deviations."""
    return float(stats.t.ppf(1 - 0.05 / 2, count - 1) / count**0.5)


def mcnemar(
    right: npt.NDArray[np.bool_], baseline_right: npt.NDArray[np.bool_]
) -> tuple[int, int, float]:
    """Compare two classifiers on the same images: the exact test of McNemar (Psychometrika 12, 1947).

    It holds for these two trained models on such images, not for other seeds.

    Args:
        right: (N,) whether the model is right on each image.
        baseline_right: (N,) the same of the baseline.

    Returns:
        Images that only the model has right, that only the baseline has right, and the two-sided p.
    """
    if right.shape != baseline_right.shape:
        raise ValueError(f"{right.shape} and {baseline_right.shape}: not the same images")
    only = int((right & ~baseline_right).sum())
    only_baseline = int((~right & baseline_right).sum())
    return only, only_baseline, sign_test(only, only_baseline)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for the number of tests (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        p_values: of all tests of a table; None where a test does not apply, which then does not count.

    Returns:
        Adjusted values in the same order. Rejecting those below a level keeps the chance of any wrong rejection below
        that level.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted
