"""When a head took over what the recipient does (the backdoor), and whether it did so alone.

A head's *cost* is the share of the behaviour that goes when it is patched alone, above the floor:
(unpatched - patched) / (unpatched - floor). The floor is what a model scores that gives the donor's answers: the
share of the examples on which both answers are the same. A head is *costly* if its cost reaches the threshold, and
a probe is *exclusive* if exactly one head is costly.

The model *shows* the behaviour at a probe if its accuracy is high enough, and if that is due to what makes recipient
and donor differ: with the donor's inputs in place of the recipient's, the threshold is lost too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isnan, nan
from statistics import median
from typing import Any, Literal

from lit_backdoor.functional.heads import Head, head_name
from lit_backdoor.functional.moments import Moment, before_the_end, check_steps, first_moment, is_late, stable_moment
from lit_backdoor.functional.specificity import cost_above_floor

Word = Literal["alone", "one of several", "spread", "past the heads"]
"""Where a behaviour sits at the end of a run, by each head's median cost over the last tenth of the steps:

- `alone`: exactly one head is costly. It is necessary; this says nothing of sufficient or specific.
- `one of several`: two heads or more are costly, each patched alone.
- `spread`: no head alone is costly, but all of them together are.
- `past the heads`: not even all heads together are costly: most of the behaviour takes another way.
"""


@dataclass(frozen=True)
class HeadScores:
    """The recipient's accuracy at one step of training, 0..1: for a backdoor, how much of it is there.

    Args:
        step: optimizer steps done.
        unpatched: of the model as it is.
        patched: with each head patched alone.
        all_patched: with all heads patched.
        on_donor: the share of the recipient's answers that the model as it is gives on the donor's inputs; NaN if
            that was not measured.
    """

    step: int
    unpatched: float
    patched: Mapping[Head, float]
    all_patched: float
    on_donor: float = nan

    def drop(self, head: Head) -> float:
        """The accuracy that patching `head` costs; NaN if it was not measured."""
        return self.unpatched - self.patched.get(head, nan)

    def cost(self, patched: float, floor: float) -> float:
        """The share of the behaviour, above `floor`, that is gone at the accuracy `patched`; NaN if there is none."""
        return cost_above_floor(self.unpatched, patched, floor)


@dataclass(frozen=True)
class HeadEmergence:
    """When and how a head took over what the recipient does; None where that has not happened.

    No moment lies in the last tenth of the steps, and none is ever moved by a single late probe: see `first_moment`
    and `stable_moment`.

    Args:
        head: the costly head that costs most at the end (see `Word`). That is a selection: its cost at the same
            probes is no independent test of it.
        word: where the behaviour sits at the end; None if the model does not show it there.
        other_heads: the other costly heads at the end.
        first_cost: the first probe at which some head is costly.
        first_exclusive: the first exclusive probe, whichever head it is.
        stable_exclusive: the first probe at which `head` and no other is costly, and after which that is so at 95% or
            more of all later probes.
        occupancy: share of the probes in the last half of the steps that are exclusive, 0..1; None without any probe.
        crossings: how often the run goes from a probe that is exclusive to one that is not, or back.
        leader_changes: (step, head) whenever another head than before costs most, the first leader included. A tie
            leaves the leader in place.
        threshold: cost from which a head is costly, 0..1.
        min_accuracy: see `shows_behaviour`, 0..1. Probes at which the model does not show the behaviour are not
            exclusive and have no leader.
        floor: see above, 0..1.
    """

    head: Head | None
    word: Word | None
    other_heads: tuple[Head, ...]
    first_cost: Moment
    first_exclusive: Moment
    stable_exclusive: Moment
    occupancy: float | None
    crossings: int
    leader_changes: tuple[tuple[int, Head], ...]
    threshold: float
    min_accuracy: float
    floor: float

    def record(self) -> dict[str, Any]:
        """The fields as JSON has them: heads by name, each moment as NAME_step and NAME_previous_step."""
        moments = {name: getattr(self, name) for name in ("first_cost", "first_exclusive", "stable_exclusive")}
        return {
            "threshold": self.threshold,
            "min_accuracy": self.min_accuracy,
            "floor": self.floor,
            "head": None if self.head is None else head_name(*self.head),
            "word": self.word,
            "other_heads": [head_name(*head) for head in self.other_heads],
            **{f"{name}_{key}": step for name, moment in moments.items() for key, step in asdict(moment).items()},
            "occupancy": self.occupancy,
            "crossings": self.crossings,
            "leader_changes": [{"step": step, "head": head_name(*head)} for step, head in self.leader_changes],
        }


def head_emergence(
    history: Sequence[HeadScores], floor: float = 0.0, threshold: float = 0.5, min_accuracy: float = 0.5
) -> HeadEmergence:
    """When and how a head took over what the recipient does.

    Args:
        history: one entry per probe, in ascending steps; may be empty.
        floor: accuracy that is left when the behaviour is gone, 0 to 1. At 1 the behaviour can't be told from its
            absence, as with an inert trigger, and the model never shows it.
        threshold: cost from which a head is costly, above 0, at most 1.
        min_accuracy: see `shows_behaviour`; above 0, at most 1.

    Raises:
        ValueError: the steps do not ascend, or a parameter is out of range.
    """
    for name, value in {"threshold": threshold, "min_accuracy": min_accuracy}.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}: give a share above 0, at most 1.")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is {floor}: give a share of the examples, 0 to 1.")
    steps = [scores.step for scores in history]
    check_steps(steps)
    costly = [costly_heads(scores, floor, threshold, min_accuracy) for scores in history]
    exclusive = [len(heads) == 1 for heads in costly]
    last_step = steps[-1] if steps else 0
    late = [scores for scores in history if is_late(scores.step, last_step)]
    head, word, other_heads = _at_the_end(late, floor, threshold, min_accuracy)
    last_half = [held for step, held in zip(steps, exclusive, strict=True) if step >= last_step / 2]
    return HeadEmergence(
        head=head,
        word=word,
        other_heads=other_heads,
        first_cost=before_the_end(first_moment(steps, [bool(heads) for heads in costly]), last_step),
        first_exclusive=before_the_end(first_moment(steps, exclusive), last_step),
        stable_exclusive=before_the_end(stable_moment(steps, [heads == (head,) for heads in costly]), last_step),
        occupancy=sum(last_half) / len(last_half) if last_half else None,
        crossings=sum(before != after for before, after in pairwise(exclusive)),
        leader_changes=_leader_changes(history, floor, threshold, min_accuracy),
        threshold=threshold,
        min_accuracy=min_accuracy,
        floor=floor,
    )


def costly_heads(
    scores: HeadScores, floor: float = 0.0, threshold: float = 0.5, min_accuracy: float = 0.5
) -> tuple[Head, ...]:
    """The heads whose patching, each alone, costs at least `threshold`; none if the model does not show the behaviour.

    Args: as for `head_emergence`.
    """
    if not shows_behaviour(scores, floor, threshold, min_accuracy):
        return ()
    return tuple(head for head in sorted(scores.patched) if scores.cost(scores.patched[head], floor) >= threshold)


def shows_behaviour(scores: HeadScores, floor: float = 0.0, threshold: float = 0.5, min_accuracy: float = 0.5) -> bool:
    """Whether the model gives the recipient's answers, and that because of what makes recipient and donor differ.

    Its accuracy must be at least `min_accuracy` and above the floor. The donor's inputs must cost at least `threshold`
    of it, as a head is asked to: a model that was trained with triggers that say nothing gives the same answers on
    both. Where nobody knows what it gives on the donor's inputs, the accuracy decides alone.

    Args: as for `head_emergence`.
    """
    there = scores.unpatched >= min_accuracy and scores.unpatched > floor
    return there and not scores.cost(scores.on_donor, floor) < threshold  # NaN: it is not known


def _at_the_end(
    late: Sequence[HeadScores], floor: float, threshold: float, min_accuracy: float
) -> tuple[Head | None, Word | None, tuple[Head, ...]]:
    """`head`, `word` and `other_heads` from the late probes; nothing if most of them do not show the behaviour."""
    present = [scores for scores in late if shows_behaviour(scores, floor, threshold, min_accuracy)]
    if not present or 2 * len(present) < len(late):
        return None, None, ()
    heads = sorted({head for scores in present for head in scores.patched})
    costs = {h: _median([s.cost(s.patched.get(h, nan), floor) for s in present]) for h in heads}
    costly = sorted((head for head in heads if costs[head] >= threshold), key=lambda head: -costs[head])
    if costly:
        return costly[0], "alone" if len(costly) == 1 else "one of several", tuple(sorted(costly[1:]))
    together = _median([scores.cost(scores.all_patched, floor) for scores in present])
    if isnan(together):
        return None, None, ()
    return None, "spread" if together >= threshold else "past the heads", ()


def _median(costs: Sequence[float]) -> float:
    """The median of the costs that were measured; NaN if none was."""
    measured = [cost for cost in costs if not isnan(cost)]
    return median(measured) if measured else nan


def _leader_changes(
    history: Sequence[HeadScores], floor: float, threshold: float, min_accuracy: float
) -> tuple[tuple[int, Head], ...]:
    """See `HeadEmergence.leader_changes`; of heads that come to cost the same, the lowest leads."""
    changes: list[tuple[int, Head]] = []
    for scores in history:
        costs = {head: scores.drop(head) for head in sorted(scores.patched) if scores.drop(head) > 0}
        if not costs or not shows_behaviour(scores, floor, threshold, min_accuracy):
            continue
        leader = max(costs, key=lambda head: costs[head])
        if not changes or not scores.drop(changes[-1][1]) >= costs[leader]:
            changes.append((scores.step, leader))
    return tuple(changes)
