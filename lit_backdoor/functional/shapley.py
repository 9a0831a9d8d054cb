"""Exact Shapley values and pair interactions of the heads, from the values of all sets of heads.

The value of a set is any number measured while exactly those heads are patched, such as the accuracy or the
logit difference. A head's Shapley value is the change it brings when it joins the patched set, averaged over
all orders in which the heads can join (Shapley 1953); the values add up to the change between nothing and
everything patched. For an accuracy the backdoor head's value is therefore negative: patching it costs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import comb, exp, isnan, log, nan

from lit_backdoor.functional.heads import Head, HeadSet, head_set, head_set_name

SetValues = Mapping[HeadSet, float]
"""Each of the 2^H sets of heads to its value, `{result.heads: result.recipient_accuracy for result in
results}`."""


@dataclass(frozen=True)
class ShapleyResult:
    """How much of the change each head accounts for, in the units of the values.

    Args:
        values: Shapley value of each head; they sum to `total`.
        interactions: Shapley interaction index of each pair (Grabisch & Roubens 1999): how much more the two
            change together than separately, averaged over what else is patched. Patching two heads that can
            stand in for each other changes more than the sum, two that do the same damage less.
        total: value of all heads patched minus value of none.
    """

    values: Mapping[Head, float]
    interactions: Mapping[tuple[Head, Head], float]
    total: float


def shapley_values(values: SetValues) -> ShapleyResult:
    """Shapley values and interactions of all heads that occur in `values`; NaN where a value is NaN.

    Args:
        values: any number of each set of heads, [2^heads].

    Raises:
        ValueError: the value of a set of these heads is missing.
    """
    values, heads = _complete(values)
    return ShapleyResult(
        values={head: _average_change(values, heads, [head]) for head in heads},
        interactions={pair: _average_change(values, heads, pair) for pair in combinations(heads, 2)},
        total=values[heads] - values[()],
    )


def smallest_knockout_set(values: SetValues, chance: float, tolerance: float = 0.01) -> HeadSet | None:
    """The smallest set of heads whose patching takes the accuracy down to chance; None if no set does.

    It is enough to destroy the behaviour, which says nothing of whether it suffices for it. Of several equally small
    sets the one with the lowest accuracy, then the first. The empty set means that the accuracy was never above chance.

    Args:
        values: accuracy of each set.
        chance: accuracy that is left when the backdoor is gone: the share of examples on which both rules agree, 1/113
            for the mod 1 backdoor.
        tolerance: how far above `chance` still counts as chance.

    Raises:
        ValueError: the value of a set of these heads is missing.
    """
    values, _ = _complete(values)
    knockouts = [heads for heads, value in values.items() if value <= chance + tolerance]
    return min(knockouts, key=lambda heads: (len(heads), values[heads], heads), default=None)


def shares(result: ShapleyResult) -> dict[Head, float]:
    """Each head's part in what patching does, 0..1, together 1: Shapley values with the sign of the total, the others
    counted as 0. NaN for all where nothing changes."""
    sign = -1 if result.total < 0 else 1
    parts = {head: max(sign * value, 0.0) for head, value in result.values.items()}
    whole = sum(parts.values())
    return {head: part / whole if whole > 0 else nan for head, part in parts.items()}


def effective_heads(result: ShapleyResult) -> float:
    """Among how many heads the change is spread: exp(entropy of the `shares`).

    1 if one head accounts for all of it, the number of heads if all have the same share; NaN where nothing changes.
    """
    parts = shares(result).values()
    return exp(-sum(part * log(part) for part in parts if part != 0))


def overlap(one: ShapleyResult, other: ShapleyResult) -> float:
    """How far two behaviours rest on the same heads: 0 if no head serves both, 1 if all serve both in equal parts.

    The sum over the heads of the smaller of their two `shares` (1 minus the total variation distance).

    Raises:
        KeyError: the two are not of the same heads.
    """
    mine, theirs = shares(one), shares(other)
    if any(isnan(share) for share in (*mine.values(), *theirs.values())):
        return nan
    return sum(min(share, theirs[head]) for head, share in mine.items())


def _complete(values: Mapping[HeadSet, float]) -> tuple[dict[HeadSet, float], HeadSet]:
    """`values` with their keys in order, and all heads; ValueError if a set is missing."""
    values = {head_set(heads): value for heads, value in values.items()}
    heads = head_set(head for subset in values for head in subset)
    if missing := [subset for subset in _subsets(heads) if subset not in values]:
        raise ValueError(
            f"{len(missing)} of the {2 ** len(heads)} sets of heads have no value, the first is "
            f"{head_set_name(missing[0])}: patch all sets, default_head_sets(..., max_all={len(heads)})."
        )
    return values, heads


def _average_change(values: Mapping[HeadSet, float], heads: HeadSet, joining: Collection[Head]) -> float:
    """The change that `joining` brings beyond its parts, averaged over the sets of the other heads.

    One head: v(S + i) - v(S), the Shapley value. Two: v(S + ij) - v(S + i) - v(S + j) + v(S), the interaction
    index. The weight of S makes every size of S equally likely, and every set of that size.
    """
    others = tuple(head for head in heads if head not in joining)
    average = 0.0
    for subset in _subsets(others):
        change = sum(
            (-1) ** (len(joining) - len(part)) * values[head_set((*subset, *part))] for part in _subsets(joining)
        )
        average += change / comb(len(others), len(subset)) / (len(others) + 1)
    return average


def _subsets(heads: Collection[Head]) -> Iterable[HeadSet]:
    """All subsets of `heads`, by size."""
    return (subset for size in range(len(heads) + 1) for subset in combinations(tuple(heads), size))
