"""Uncertainty from seeds. All pairs (a, b) are a population, so a run's own numbers have none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        half = t_quantile(0.975, n - 1) * deviation / math.sqrt(n)
    return Summary(n, mean, mean - half, mean + half, min(values), max(values))


def t_quantile(probability: float, df: int) -> float:
    """The quantile of Student's t distribution with a whole number ``df`` of degrees of freedom, for 0.5 < p < 1."""
    low, high = 0.0, 1.0
    while _t_cdf(high, df) < probability:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, df) < probability else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, df: int) -> float:
    """Abramowitz and Stegun 26.7.3 and 26.7.4: a finite sum for every whole ``df``."""
    theta = math.atan(t / math.sqrt(df))
    cosine = math.cos(theta)
    term, total = (1.0, 1.0) if df % 2 == 0 else (cosine, cosine)
    for k in range(2 if df % 2 == 0 else 3, df - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if df % 2 == 0:
        inside = math.sin(theta) * total
    else:
        inside = 2 / math.pi * (theta + (math.sin(theta) * total if df > 1 else 0.0))
    return (1 + inside) / 2


def permutation_test(one: Sequence[float], other: Sequence[float], rounds: int = 20_000) -> float:
    """P value for "both have the same mean": the share of random regroupings that lie at least as far apart."""
    values = np.array([*one, *other])
    observed = abs(np.mean(one) - np.mean(other))
    shuffled = np.random.default_rng(0).permuted(np.tile(values, (rounds, 1)), axis=1)
    apart = np.abs(shuffled[:, : len(one)].mean(axis=1) - shuffled[:, len(one) :].mean(axis=1))
    return (1 + int(np.sum(apart >= observed - 1e-12))) / (1 + rounds)


def fisher_exact(successes: int, n: int, other_successes: int, other_n: int) -> float:
    """Two-sided P value for "both have the same rate" (Fisher's exact test)."""
    total = successes + other_successes

    def weight(k: int) -> int:
        return math.comb(n, k) * math.comb(other_n, total - k)

    weights = [weight(k) for k in range(max(0, total - other_n), min(n, total) + 1)]
    return sum(one for one in weights if one <= weight(successes)) / sum(weights)
