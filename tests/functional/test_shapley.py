from __future__ import annotations

import math
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import (
    Head,
    HeadSet,
    Probe,
    ShapleyResult,
    default_head_sets,
    effective_heads,
    overlap,
    patch_heads,
    shapley_values,
    shares,
    smallest_knockout_set,
)
from tests.helpers.tiny_models import VOCAB, make_backdoor

fast = settings(max_examples=50, deadline=None, derandomize=True)
numbers = st.floats(-5, 5)


@st.composite
def games(draw: st.DrawFn) -> dict[HeadSet, float]:
    sets = default_head_sets(*draw(st.sampled_from([(1, 1), (1, 2), (1, 4), (2, 2), (5, 1)])))
    return {heads: draw(numbers) for heads in sets}


def everyone(values: dict[HeadSet, float]) -> HeadSet:
    return max(values, key=len)


@fast
@given(games())
def test_against_all_orders(values: dict[HeadSet, float]) -> None:
    heads = everyone(values)
    gains: dict[Head, list[float]] = {head: [] for head in heads}
    for order in permutations(heads):
        for i, head in enumerate(order):
            before = tuple(sorted(order[:i]))
            gains[head].append(values[tuple(sorted((*before, head)))] - values[before])
    result = shapley_values(values)
    for head in heads:
        assert result.values[head] == pytest.approx(sum(gains[head]) / len(gains[head]), abs=1e-9)


@fast
@given(games())
def test_efficiency(values: dict[HeadSet, float]) -> None:
    result = shapley_values(values)
    assert result.total == values[everyone(values)] - values[()]
    assert sum(result.values.values()) == pytest.approx(result.total, abs=1e-12)


@fast
@given(games())
def test_interactions_by_merging_two_heads(values: dict[HeadSet, float]) -> None:
    """The value of the pair as one player, minus each one's value where the other is missing."""
    heads, result = everyone(values), shapley_values(values)
    assert set(result.interactions) == set(combinations(heads, 2))
    for i, j in combinations(heads, 2):
        merged = {s: v for s, v in values.items() if (i in s) == (j in s)}
        pair = {tuple(h for h in s if h != j): v for s, v in merged.items()}
        without_i = {s: v for s, v in values.items() if i not in s}
        without_j = {s: v for s, v in values.items() if j not in s}
        expected = (
            shapley_values(pair).values[i] - shapley_values(without_j).values[i] - shapley_values(without_i).values[j]
        )
        assert result.interactions[i, j] == pytest.approx(expected, abs=1e-9)


@fast
@given(st.lists(numbers, min_size=5, max_size=5))
def test_symmetry(by_size: list[float]) -> None:
    """If only the number of patched heads counts, all heads get the same."""
    result = shapley_values({heads: by_size[len(heads)] for heads in default_head_sets(1, 4)})
    for value in result.values.values():
        assert value == pytest.approx((by_size[4] - by_size[0]) / 4, abs=1e-12)
    assert len({round(value, 9) + 0.0 for value in result.interactions.values()}) == 1


@fast
@given(games(), numbers)
def test_a_dummy_gets_its_own_worth_and_interacts_with_nobody(values: dict[HeadSet, float], worth: float) -> None:
    dummy = Head(9, 9)
    larger = {**values, **{(*heads, dummy): value + worth for heads, value in values.items()}}
    before, after = shapley_values(values), shapley_values(larger)
    assert after.values[dummy] == pytest.approx(worth, abs=1e-9)
    for head, value in before.values.items():
        assert after.values[head] == pytest.approx(value, abs=1e-9)
        assert after.interactions[head, dummy] == pytest.approx(0, abs=1e-9)


def test_redundant_heads_interact() -> None:
    a, b = Head(0, 0), Head(0, 1)
    result = shapley_values({(): 1, (a,): 1, (b,): 1, (a, b): 0})  # either of them keeps the backdoor alive
    assert result.values == {a: -0.5, b: -0.5}
    assert result.interactions == {(a, b): -1}


def test_keys_may_come_in_any_order() -> None:
    a, b = Head(0, 0), Head(1, 0)
    assert shapley_values({(b, a): 3, (b,): 1, (): 0, (a,): 2}) == shapley_values({(): 0, (a,): 2, (b,): 1, (a, b): 3})


def test_nan_in_nan_out() -> None:
    values = dict.fromkeys(default_head_sets(1, 3), 1.0)
    values[(Head(0, 1),)] = math.nan
    result = shapley_values(values)
    assert all(math.isnan(value) for value in [*result.values.values(), *result.interactions.values()])


@pytest.mark.parametrize("function", [shapley_values, lambda values: smallest_knockout_set(values, chance=0)])
def test_missing_sets_are_named(function: object) -> None:
    values = dict.fromkeys(default_head_sets(1, 3), 1.0)
    del values[()]
    with pytest.raises(ValueError, match="1 of the 8 sets of heads have no value, the first is none"):
        function(values)  # type: ignore[operator]
    singles_and_more = dict.fromkeys(default_head_sets(1, 5, max_all=2), 1.0)
    with pytest.raises(ValueError, match=r"20 of the 32 sets.*the first is L0H0\+L0H1: .*max_all=5"):
        function(singles_and_more)  # type: ignore[operator]


A, B, C = (Head(0, i) for i in range(3))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({(B,): 0.02}, (B,)),
        ({(B,): 0.021}, None),  # chance + tolerance is 0.02
        ({(B,): 0.01, (C,): 0.005}, (C,)),  # the largest drop
        ({(B,): 0.01, (C,): 0.01}, (B,)),  # then the first
        ({(A, B): 0.0, (C,): 0.02}, (C,)),  # size comes first
        ({(A, C): 0.0}, (A, C)),
        ({(A, B, C): 0.01, (A, B): math.nan}, (A, B, C)),
        ({(): 0.01}, ()),
    ],
)
def test_smallest_knockout_set(changes: dict[HeadSet, float], expected: HeadSet | None) -> None:
    values = dict.fromkeys(default_head_sets(1, 3), 1.0) | changes
    assert smallest_knockout_set(values, chance=0.01) == expected


@pytest.mark.parametrize(("layer", "n_layers"), [(0, 1), (1, 2)])
def test_the_hand_built_head_is_found(layer: int, n_layers: int, backdoor_probe: Probe) -> None:
    model, head = make_backdoor(layer=layer, n_layers=n_layers), Head(layer, 1)
    results = patch_heads(model, backdoor_probe, default_head_sets(n_layers, 3))
    accuracy = {result.heads: result.recipient_accuracy for result in results}
    result = shapley_values(accuracy)
    for each, value in result.values.items():
        assert value == pytest.approx(1 / VOCAB - 1 if each == head else 0, abs=1e-9)
    assert all(abs(value) < 1e-9 for value in result.interactions.values())
    assert smallest_knockout_set(accuracy, chance=1 / VOCAB) == (head,)


def test_a_model_without_a_backdoor_needs_no_head(backdoor_probe: Probe) -> None:
    results = patch_heads(make_backdoor(strength=0), backdoor_probe, default_head_sets(1, 3))
    accuracy = {result.heads: result.recipient_accuracy for result in results}
    assert set(shapley_values(accuracy).values.values()) == {0}
    assert smallest_knockout_set(accuracy, chance=1 / VOCAB) == ()


def test_two_behaviours_overlap_by_the_shares_they_have_in_common() -> None:
    def result(*values: float) -> ShapleyResult:
        return ShapleyResult({Head(0, i): value for i, value in enumerate(values)}, {}, sum(values))

    assert shares(result(-0.6, -0.2, 0.1)) == pytest.approx({Head(0, 0): 0.75, Head(0, 1): 0.25, Head(0, 2): 0.0})
    assert overlap(result(-0.5, 0.0), result(0.0, -0.5)) == 0
    assert overlap(result(-0.2, -0.2), result(0.4, 0.4)) == pytest.approx(1)
    assert overlap(result(-0.9, -0.1), result(-0.1, -0.9)) == pytest.approx(0.2)
    assert math.isnan(overlap(result(0.0, 0.0), result(-1.0, 0.0)))
    assert math.isnan(overlap(result(-1.0, 0.0), result(0.0, 0.0)))


def test_effective_heads_of_known_shares() -> None:
    def spread(*values: float) -> float:
        return effective_heads(ShapleyResult({Head(0, i): value for i, value in enumerate(values)}, {}, sum(values)))

    assert spread(-0.9, 0.0, 0.0, 0.0) == 1
    assert spread(-0.2, -0.2, -0.2, -0.2) == pytest.approx(4)
    assert spread(0.5, 0.5, 0.0, -0.1) == pytest.approx(2)  # a head against the total has no share
    assert spread(-0.75, -0.25) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert math.isnan(spread(0.0, 0.0))


@fast
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=6))
def test_effective_heads_lie_between_one_and_all(values: list[float]) -> None:
    result = ShapleyResult({Head(0, i): -value for i, value in enumerate(values)}, {}, -sum(values))
    assert 1 - 1e-9 <= effective_heads(result) <= len(values) + 1e-9
