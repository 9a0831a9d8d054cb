"""Uncertainty from seeds. All pairs (a, b) are a population, so a run's own numbers have none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Some numbers, one per seed, in short.

    Attributes:
        n: how many.
        mean: NaN without any.
        low: lower end of the 95% interval of the mean; NaN with fewer than two.
        high: its upper end.
        smallest: the smallest number.
        largest: the largest number.
    """

    n: int
    mean: float
    low: float
    high: float
    smallest: float
    largest: float


def summarise(values: Sequence[float]) -> Summary:
    """The mean with Student's 95% interval, and the range.

    With few seeds the t interval is the one to take: it widens as it must when the spread itself is estimated from
    ten numbers or three, where a bootstrap, which can only draw what was seen, comes out too narrow. It is exact for
    normal values and rough for skewed ones; so the range, and every seed's own number, stand beside it.
    """
    nan = math.nan
    if not values:
        return Summary(0, nan, nan, nan, nan, nan)
    n, mean = len(values), math.fsum(values) / len(values)
    half = nan
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
    return Summary(n, mean, mean - half, mean + half, min(values), max(values))


def permutation_test(one: Sequence[float], other: Sequence[float], rounds: int = 20_000) -> float:
    """P value for "both have the same mean": the share of regroupings that lie at least as far apart.

    Of all regroupings where there are no more than ``rounds``, otherwise of so many random ones. NaN where one side has
    fewer than two numbers.
    """
    if min(len(one), len(other)) < 2:
        return math.nan

    def distance(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(np.mean(x, axis=axis) - np.mean(y, axis=axis))

    tested = stats.permutation_test((one, other), distance, n_resamples=rounds, alternative="greater", rng=0)
    return float(tested.pvalue)


def fisher_exact(successes: int, n: int, other_successes: int, other_n: int) -> float:
    """Two-sided P value for "both have the same rate" (Fisher's exact test)."""
    table = [[successes, n - successes], [other_successes, other_n - other_successes]]
    return float(stats.fisher_exact(table).pvalue)
