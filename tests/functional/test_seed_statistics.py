"""Statistics over seeds: known answers from books, oracles written out, and how often they are right."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_backdoor.functional.seed_statistics import (
    Interval,
    difference_of_means,
    difference_of_rates,
    kaplan_meier_median,
    n_exactly_one,
    rank_correlation,
    summarise,
    sums_of_squares,
    verdict,
    westfall_young,
    wilson,
)


def test_mean_median_range_and_interval() -> None:
    ours = summarise([0.1, 0.2, 0.3, 0.9, 1.0])
    assert (ours.n, ours.mean, ours.median, ours.smallest, ours.largest) == (5, pytest.approx(0.5), 0.3, 0.1, 1.0)
    assert 0.1 <= ours.low < 0.5 < ours.high <= 1.0
    assert ours == summarise([0.1, 0.2, 0.3, 0.9, 1.0])  # the same numbers, the same interval
    assert summarise([]).n == 0 and math.isnan(summarise([]).median)


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.4], [1.0] * 10])
def test_too_little_for_an_interval(values: list[float]) -> None:
    ours = summarise(values)
    assert math.isnan(ours.low) and math.isnan(ours.high) and ours.mean == pytest.approx(sum(values) / len(values))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=12))
@example([0.0, 0.0, 1.768371923155533e-238])
def test_an_interval_of_shares_is_one_of_shares(values: list[float]) -> None:
    ours = summarise(values)
    assert math.isnan(ours.low) or 0 <= ours.low <= ours.high <= 1


def test_wilson_as_in_the_books() -> None:
    # Newcombe 1998, Table I, the score method without continuity correction
    for count, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        rate = wilson(count, n)
        assert (rate.value, rate.low, rate.high) == pytest.approx((count / n, low, high), abs=5e-5)
    assert wilson(1, 29).low == pytest.approx(0.0061, abs=5e-5)
    assert math.isnan(wilson(0, 0).value)


def test_differences_of_rates_as_in_the_books() -> None:
    # Newcombe 1998, Interval estimation for the difference, Table II, method 10
    for counts, low, high in (((56, 70, 48, 80), 0.0524, 0.3339), ((9, 10, 3, 10), 0.1705, 0.8090)):
        difference = difference_of_rates(*counts)
        assert (difference.low, difference.high) == pytest.approx((low, high), abs=5e-5)


def test_the_median_of_times_that_some_runs_never_reach() -> None:
    assert kaplan_meier_median([1, 2, 3], [9, 9, 9]) == 2
    assert kaplan_meier_median([1, 2, 3, 4], [9] * 4) == 2
    assert kaplan_meier_median([1, 2, None, None, None], [9] * 5) is None
    assert kaplan_meier_median([None], [9]) is None
    # a run that ended early says little: without it the median of 5 of 6 would be 30
    assert kaplan_meier_median([10, 20, 30, 40, None, None], [100, 100, 100, 100, 5, 100]) == 30
    # Kaplan and Meier by hand: 3/4, then (censored at 15) 3/4 * 1/2
    assert kaplan_meier_median([10, None, 20, None], [99, 15, 99, 99]) == 20
    with pytest.raises(ValueError, match="2 times and 1 ends"):
        kaplan_meier_median([1, 2], [9])
    with pytest.raises(ValueError, match="after the end"):
        kaplan_meier_median([10], [9])


def step_down(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> list[float]:
    """Westfall and Young's algorithm 4.1, loop by loop, over all regroupings."""
    runs = np.array([*ours, *theirs])
    spread = np.where(runs.std(axis=0) > 0, runs.std(axis=0), 1)

    def statistics(members: Sequence[int]) -> list[float]:
        others = [i for i in range(len(runs)) if i not in members]
        return list(np.abs(runs[list(members)].mean(axis=0) - runs[others].mean(axis=0)) / spread)

    observed = statistics(range(len(ours)))
    rounds = [statistics(members) for members in combinations(range(len(runs)), len(ours))]
    p_values, largest = dict.fromkeys(range(len(observed)), 0.0), 0.0
    order = sorted(range(len(observed)), key=lambda measure: -observed[measure])
    for rank, measure in enumerate(order):
        rest = order[rank:]
        p = sum(max(t[m] for m in rest) >= observed[measure] - 1e-9 for t in rounds) / len(rounds)
        largest = max(largest, p)
        p_values[measure] = largest
    return [p_values[measure] for measure in range(len(observed))]


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_westfall_young_against_its_algorithm(data: st.DataObject) -> None:
    n_measures = data.draw(st.integers(1, 4))
    run = st.lists(st.integers(0, 5).map(float), min_size=n_measures, max_size=n_measures)
    ours, theirs = (data.draw(st.lists(run, min_size=2, max_size=4)) for _ in range(2))
    assert westfall_young(ours, theirs) == pytest.approx(step_down(ours, theirs))


def test_a_constant_measure_costs_the_others_nothing() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(10, 2)), rng.normal(size=(10, 2)) + np.array([1.5, 0])
    wide = [np.column_stack([each, np.ones((10, 20))]).tolist() for each in (ours, theirs)]
    p_values = westfall_young(*wide)
    assert p_values[:2] == westfall_young(ours.tolist(), theirs.tolist())
    assert p_values[2:] == [1.0] * 20
    assert p_values[0] < 0.05 < p_values[1]
    assert all(math.isnan(p) for p in westfall_young([[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(ValueError, match="same number of measures"):
        westfall_young([[1.0]], [[1.0, 2.0]])


def test_westfall_young_errs_once_in_twenty() -> None:
    """Six measures that go together, nothing to find: how often is anything found?"""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        runs = rng.normal(size=(8, 1)) + 0.5 * rng.normal(size=(8, 6))
        wrong += min(westfall_young(runs[:4].tolist(), runs[4:].tolist())) <= 0.05
    print(f"something found in {wrong} of 200 data sets without anything")
    assert wrong <= 20


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.05, 0.05, "agrees"),
        (0.01, 0.05, "agrees"),  # a difference, but one that does not matter
        (-0.05, 0.3, "inconclusive"),
        (0.05, 0.3, "differs"),
        (-0.3, -0.2, "differs"),
        (-0.1, 0.05, "inconclusive"),  # the margin itself is too far
        (0.0, 0.3, "inconclusive"),
        (math.nan, math.nan, "inconclusive"),
    ],
)
def test_three_verdicts(low: float, high: float, expected: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high), margin=0.1) == expected


def test_a_verdict_needs_a_margin() -> None:
    with pytest.raises(ValueError, match="margin is 0"):
        verdict(Interval(0, 0, 0), 0)


def test_few_seeds_tell_nothing() -> None:
    assert verdict(difference_of_rates(4, 10, 7, 10), 0.2) == "inconclusive"
    assert verdict(difference_of_means([0.1, 0.2], [0.9, 0.8]), 0.1) == "inconclusive"


def test_exactly_one_head_over_the_thresholds() -> None:
    thresholds = (0.1, 0.25, 0.35, 0.5, 0.55, 0.6, 0.65, 0.9, 0.95)
    costs = [[0.9, 0.3, 0.0], [0.6, 0.5, 0.1]]
    assert [n_exactly_one(costs, threshold) for threshold in thresholds] == [0, 0, 1, 1, 2, 2, 1, 1, 0]


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5), st.integers(2, 5), st.data())
def test_the_sums_of_squares_add_up(n_seeds: int, n_splits: int, data: st.DataObject) -> None:
    """Against the textbook's loops; and seeds and splits swap places with the table turned round."""
    flat = data.draw(st.lists(st.integers(0, 1), min_size=n_seeds * n_splits, max_size=n_seeds * n_splits))
    grid = np.array(flat, dtype=float).reshape(n_seeds, n_splits)
    of_seed, of_split, of_both = sums_of_squares(grid)
    mean = grid.mean()
    residuals = [
        grid[i, j] - grid[i].mean() - grid[:, j].mean() + mean for i in range(n_seeds) for j in range(n_splits)
    ]
    assert of_both == pytest.approx(sum(value**2 for value in residuals))
    assert of_seed + of_split + of_both == pytest.approx(((grid - mean) ** 2).sum())
    assert sums_of_squares(grid.T) == pytest.approx([of_split, of_seed, of_both])
    assert sums_of_squares(grid[::-1]) == pytest.approx([of_seed, of_split, of_both])


@given(st.permutations(range(6)))
def test_rank_correlation_as_in_the_books(order: list[int]) -> None:
    """Without ties, 1 - 6 * (sum of squared differences of ranks) / n (n^2 - 1)."""
    by_hand = 1 - 6 * sum((i - j) ** 2 for i, j in enumerate(order)) / (6 * 35)
    assert rank_correlation([0.1, 0.2, 0.5, 1, 7, 9], order) == pytest.approx(by_hand)


def test_rank_correlation_of_equals_and_of_too_few() -> None:
    assert rank_correlation([1, 1, 2], [3, 3, 9]) == pytest.approx(1)  # equals share their mean rank
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(3 / math.sqrt(10))  # by hand
    assert math.isnan(rank_correlation([1, 2], [1, 2])) and math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))
