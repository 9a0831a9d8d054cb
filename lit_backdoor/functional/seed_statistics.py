"""Uncertainty from seeds. All pairs (a, b) are a population, so a run's own numbers have none.

What is measured is bounded and skewed (accuracies, shares), counted, or cut off by the end of a run, and there are ten
seeds or fewer. So: medians, ranges and BCa intervals, Wilson's interval for counts, Kaplan and Meier for times, and
Westfall and Young where several things are tested at once. No Student's t.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["agrees", "differs", "inconclusive"]

ROUNDS = 10_000
"""Regroupings and resamples, where all would be too many."""


@dataclass(frozen=True)
class Interval:
    """A number and its 95% interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Some numbers, one per seed, in short.

    Attributes:
        n: how many.
        mean: NaN without any.
        low: lower end of the 95% BCa interval of the mean; NaN with fewer than three, or if all are the same.
        high: its upper end.
        median: NaN without any.
        smallest: the smallest number.
        largest: the largest number.
    """

    n: int
    mean: float
    low: float
    high: float
    median: float
    smallest: float
    largest: float


def summarise(values: Sequence[float]) -> Summary:
    """Mean with BCa interval, median and range.

    BCa (Efron 1987) stays inside the range of what is measured and follows its skew. With ten seeds it is still too
    narrow for very skewed values; so the range, and every seed's own number, stand beside it.
    """
    if not values:
        return Summary(0, *[math.nan] * 6)
    mean = _bca(tuple(values))
    return Summary(len(values), mean.value, mean.low, mean.high, float(np.median(values)), min(values), max(values))


def difference_of_means(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Our mean minus theirs, with the 95% BCa interval; without one where either has fewer than three numbers."""
    return _bca(tuple(ours), tuple(theirs))


def wilson(count: int, n: int) -> Interval:
    """A rate with Wilson's 95% interval, which stays inside 0..1 and is not empty at 0 or n; NaN without any."""
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    interval = stats.binomtest(count, n).proportion_ci(method="wilson")
    return Interval(count / n, float(interval.low), float(interval.high))


def difference_of_rates(count: int, n: int, other_count: int, other_n: int) -> Interval:
    """Our rate minus theirs, with Newcombe's 95% interval (1998, method 10), which is made of both Wilson intervals."""
    ours, theirs = wilson(count, n), wilson(other_count, other_n)
    value = ours.value - theirs.value
    below = math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    above = math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return Interval(value, value - below, value + above)


def verdict(difference: Interval, margin: float) -> Verdict:
    """Whether two things agree, by the interval of their difference.

    `agrees`: the whole interval is closer to 0 than `margin`. `differs`: it is not, and excludes 0. Otherwise
    `inconclusive`, and so without an interval.

    Args:
        difference: of the two.
        margin: the largest difference that does not matter, fixed before the runs; above 0.

    Raises:
        ValueError: the margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}: give a difference above 0.")
    if -margin < difference.low and difference.high < margin:
        return "agrees"
    return "differs" if difference.low > 0 or difference.high < 0 else "inconclusive"


def kaplan_meier_median(times: Sequence[float | None], ends: Sequence[float]) -> float | None:
    """The median time until something happens, of runs of which some ended before it did (right-censored).

    The first time by which it has happened in at least half of the runs, as Kaplan and Meier (1958) estimate it; None
    if too many runs end before.

    Args:
        times: when it happened in each run; None if it has not.
        ends: the last step of each run.

    Raises:
        ValueError: the lengths differ, or something happened after its run's end.
    """
    if len(times) != len(ends):
        raise ValueError(f"there are {len(times)} times and {len(ends)} ends: give one end for each run.")
    happened = [(time, end) for time, end in zip(times, ends, strict=True) if time is not None]
    if late := [(time, end) for time, end in happened if time > end]:
        raise ValueError(f"a time of {late[0][0]} lies after the end of its run, {late[0][1]}.")
    if not happened:
        return None
    censored = [end for time, end in zip(times, ends, strict=True) if time is None]
    data = stats.CensoredData(uncensored=[time for time, _ in happened], right=censored)
    survival = stats.ecdf(data).sf
    below = survival.quantiles[survival.probabilities <= 0.5 + 1e-12]
    return float(below[0]) if len(below) else None


def westfall_young(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> list[float]:
    """Two-sided P values for "both have the same mean", one per measure, corrected for their number.

    Westfall and Young's step-down max-T (1993): whole runs are regrouped, so measures that go together count together.
    T is the distance of the means in units of the measure's spread over all runs; a measure that is the same in all
    runs has T = 0 and P = 1, and does not weaken the others. Of all regroupings where there are no more than
    `ROUNDS`, otherwise of so many random ones. NaN where one side has fewer than two runs.

    Args:
        ours: [run, measure].
        theirs: [run, measure].

    Raises:
        ValueError: the runs do not have the same measures.
    """
    if len({len(run) for run in (*ours, *theirs)}) > 1:
        raise ValueError("the runs do not have the same number of measures.")
    n_measures = len((*ours, *theirs)[0])
    if min(len(ours), len(theirs)) < 2:
        return [math.nan] * n_measures
    pooled = np.asarray([*ours, *theirs], dtype=np.float64)
    spread = pooled.std(axis=0)
    scaled = np.where(spread > 0, (pooled - pooled.mean(axis=0)) / np.where(spread > 0, spread, 1), 0)

    def distance(one: np.ndarray, other: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.abs(one.mean(axis=axis) - other.mean(axis=axis))

    groups = (scaled[: len(ours)], scaled[len(ours) :])
    rng = np.random.default_rng(0)
    regrouped = stats.permutation_test(groups, distance, axis=0, vectorized=True, n_resamples=ROUNDS, rng=rng)
    t, own = regrouped.null_distribution, regrouped.statistic  # [round, measure], [measure]
    if len(t) == ROUNDS:  # drawn at random, so that the runs as they are count once more
        t = np.vstack([own, t])
    order = np.argsort(-own, kind="stable")
    largest = np.maximum.accumulate(t[:, order[::-1]], axis=1)[:, ::-1]  # over this measure and all with smaller T
    p_values = np.maximum.accumulate((largest >= own[order] - 1e-12).mean(axis=0))
    return [float(p_values[list(order).index(measure)]) for measure in range(n_measures)]


def n_exactly_one(costs: Sequence[Sequence[float]], threshold: float) -> int:
    """In how many runs exactly one head is costly.

    Args:
        costs: above the floor, [run, head].
        threshold: the cost from which on a head is called costly.
    """
    return sum(sum(cost >= threshold for cost in run) == 1 for run in costs)


def rank_correlation(ones: Sequence[float], others: Sequence[float]) -> float:
    """Spearman's rank correlation of pairs, -1..1; equals share their mean rank.

    NaN with fewer than three pairs, or where all numbers of one side are the same.
    """
    if len(ones) < 3 or min(len(set(ones)), len(set(others))) < 2:
        return math.nan
    return float(stats.spearmanr(ones, others).statistic)


def sums_of_squares(grid: np.ndarray) -> np.ndarray:
    """Of a table [seed, split]: those of rows' means, columns' means and the rest, which add up to the total."""
    mean = grid.mean()
    rows = grid.shape[1] * ((grid.mean(axis=1) - mean) ** 2).sum()
    columns = grid.shape[0] * ((grid.mean(axis=0) - mean) ** 2).sum()
    return np.array([rows, columns, ((grid - mean) ** 2).sum() - rows - columns])


def p_value_of_rows(grid: np.ndarray) -> float:
    """How often the means of the rows are spread so far if each column is shuffled by itself; of `ROUNDS` shuffles."""
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.broadcast_to(grid, (ROUNDS, *grid.shape)), axis=1)
    spread = shuffled.mean(axis=2).var(axis=1)
    return float((1 + (spread >= grid.mean(axis=1).var() - 1e-12).sum()) / (1 + ROUNDS))


@lru_cache(maxsize=4096)
def _bca(*samples: tuple[float, ...]) -> Interval:
    """The mean of a sample, or the difference of two means, with the BCa interval; the same for the same numbers."""
    if any(not sample for sample in samples):
        return Interval(math.nan, math.nan, math.nan)

    def statistic(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
        means = [np.mean(part, axis=axis) for part in parts]
        return means[0] - means[1] if len(means) == 2 else means[0]

    value = float(statistic(*map(np.asarray, samples)))
    if any(len(sample) < 3 for sample in samples) or all(len(set(sample)) == 1 for sample in samples):
        return Interval(value, math.nan, math.nan)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # as of spreads too small to square
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # NaN then, which we pass on
        result = stats.bootstrap(samples, statistic, n_resamples=ROUNDS, method="BCa", rng=np.random.default_rng(0))
    return Interval(value, *map(float, result.confidence_interval))
