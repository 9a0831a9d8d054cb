"""From a history of scores to what happened: when a head took over, when a rule grokked, when the loss
spiked.

Everything is measured at some steps only, so each moment is an interval: it lies after the measurement named
`previous...`, at or before the one named as the step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isnan, log10, nan

from lit_backdoor.functional.hooked import Head


@dataclass(frozen=True)
class HeadScores:
    """The recipient's accuracy at one step of training, 0..1: for a backdoor, how much of it is there.

    Args:
        step: optimizer steps done.
        unpatched: of the model as it is.
        patched: with each head patched alone.
        all_patched: with all heads patched.
    """

    step: int
    unpatched: float
    patched: Mapping[Head, float]
    all_patched: float

    def drop(self, head: Head) -> float:
        """The accuracy that patching `head` costs; NaN if it was not measured."""
        return self.unpatched - self.patched.get(head, nan)


@dataclass(frozen=True)
class Emergence:
    """When one head took over what the recipient does (the backdoor); None where that has not happened.

    Args:
        backdoor_head: the head, chosen as the one whose patching costs most at the last probe. That is a
            selection: its score at the same probe is no independent test of it.
        emergence_step: the first probe from which on patching it costs at least `threshold` of the accuracy.
        previous_probe_step: the probe before; None if there was none.
        threshold: share of the unpatched accuracy, 0..1.
        concentration: the head's drop as a share of the drop with all heads patched, at the last probe, 0..1.
        single_head_share: the head's drop as a share of the sum of all heads' single drops, at the last
            probe: 1 if it is alone, 1 / number of heads if all cost the same.
        other_heads: heads other than `backdoor_head` whose patching, alone, costs at least `threshold` too at the last
            probe: each of them is needed, and `backdoor_head` is not the only one.
        leader_changes: (step, head) whenever another head than before costs most, the first leader included;
            only probes with an unpatched accuracy of at least `min_accuracy` count. A tie leaves the leader in place.
    """

    backdoor_head: Head | None
    emergence_step: int | None
    previous_probe_step: int | None
    threshold: float
    concentration: float | None
    single_head_share: float | None
    other_heads: tuple[Head, ...]
    leader_changes: tuple[tuple[int, Head], ...]


@dataclass(frozen=True)
class Onset:
    """The first measurement from which on something holds until the end; both None if it does not hold at the
    end.

    Args:
        step: that measurement's step.
        previous_step: the measurement before it, at which it did not hold; None if there was none.
    """

    step: int | None
    previous_step: int | None


@dataclass(frozen=True)
class LossSpike:
    """One excursion of the loss.

    Args:
        start_step: the first measurement at which the loss is up.
        peak_step: where it is highest.
        end_step: the first measurement at which it has come back; None if it has not yet.
        base_loss: the loss it rose from.
        peak_loss: the highest loss.
    """

    start_step: int
    peak_step: int
    end_step: int | None
    base_loss: float
    peak_loss: float


def emergence(history: Sequence[HeadScores], threshold: float = 0.5, min_accuracy: float = 0.5) -> Emergence:
    """When one head took over what the recipient does (the backdoor).

    The candidate is the head whose patching costs most at the last probe (the lowest one if several cost the
    same). It has taken over at the first probe from which on, until the end of the history, patching it
    always costs at least `threshold` of the unpatched accuracy, and that accuracy is at least `min_accuracy`.
    So neither an untrained model nor one without a backdoor gets a verdict.

    Args:
        history: one entry per probe, in ascending steps; may be empty.
        threshold: share of the unpatched accuracy, above 0, at most 1.
        min_accuracy: the unpatched accuracy from which the model counts as doing it, above 0, at most 1.

    Raises:
        ValueError: the steps do not ascend, or a parameter is out of range.
    """
    for name, value in {"threshold": threshold, "min_accuracy": min_accuracy}.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}: give a share above 0, at most 1.")
    _check_steps([scores.step for scores in history])
    leaders = _leader_changes(history, min_accuracy)
    nothing = Emergence(None, None, None, threshold, None, None, (), leaders)
    if not history or (head := _leader(history[-1])) is None:
        return nothing
    costly = [s.unpatched >= min_accuracy and s.drop(head) >= threshold * s.unpatched for s in history]
    onset = _onset([scores.step for scores in history], costly)
    if onset.step is None:
        return nothing
    last = history[-1]
    drops = [max(last.drop(each), 0.0) for each in last.patched]
    return Emergence(
        backdoor_head=head,
        emergence_step=onset.step,
        previous_probe_step=onset.previous_step,
        threshold=threshold,
        concentration=_share(last.drop(head), last.unpatched - last.all_patched),
        single_head_share=_share(last.drop(head), sum(drops)),
        other_heads=tuple(
            each for each in last.patched if each != head and last.drop(each) >= threshold * last.unpatched
        ),
        leader_changes=leaders,
    )


def grokking_step(steps: Sequence[int], accuracies: Sequence[float], threshold: float = 0.99) -> Onset:
    """When something was grokked (Power et al., arXiv 2201.02177): the first measurement from which on the accuracy is
    at least `threshold` until the end.

    Args:
        steps: ascending.
        accuracies: 0..1, one for each step.
        threshold: 0..1.

    Raises:
        ValueError: the steps do not ascend, or the two lengths differ.
    """
    _check_steps(steps, accuracies)
    return _onset(steps, [accuracy >= threshold for accuracy in accuracies])


def loss_spikes(
    steps: Sequence[int], losses: Sequence[float], rise: float = 1.0, window: int = 1000
) -> list[LossSpike]:
    """The spikes of a loss curve, as in the paper's Figure 3.

    A spike starts where log10(loss) is at least `rise` above its minimum over the last `window` steps, and
    ends where it has come back at least half the way; that minimum is its base until then. In between it is
    one spike, however restless. Measurements that are not positive numbers are passed over, except infinity,
    which is a spike.

    Args:
        steps: ascending.
        losses: natural units, not logarithms.
        rise: in powers of ten, above 0.
        window: in steps, above 0.

    Raises:
        ValueError: the steps do not ascend, the lengths differ, or a parameter is not above 0.
    """
    _check_steps(steps, losses)
    if not (rise > 0 and window > 0):
        raise ValueError(f"rise is {rise} and window is {window}: both must be above 0.")
    spikes: list[LossSpike] = []
    spike: LossSpike | None = None  # the one that is going on
    lows: deque[tuple[int, float]] = deque()  # (step, loss): the minimum since each step, within the window
    for step, loss in zip(steps, losses, strict=True):
        if not loss > 0:
            continue
        if spike:
            if loss > spike.peak_loss:
                spike = replace(spike, peak_step=step, peak_loss=loss)
            if log10(loss) > log10(spike.base_loss) + rise / 2:
                continue
            spikes.append(replace(spike, end_step=step))
            spike = None
            lows.clear()
        while lows and lows[0][0] < step - window:
            lows.popleft()
        base = lows[0][1] if lows else loss
        if log10(loss) >= log10(base) + rise:
            spike = LossSpike(step, step, None, base, loss)
        else:
            while lows and lows[-1][1] >= loss:
                lows.pop()
            lows.append((step, loss))
    return spikes + ([spike] if spike else [])


def _leader(scores: HeadScores) -> Head | None:
    """The head whose patching costs most, the lowest one of equals; None if none costs anything."""
    costs = {head: scores.drop(head) for head in sorted(scores.patched) if scores.drop(head) > 0}
    return max(costs, key=lambda head: costs[head], default=None)


def _leader_changes(history: Sequence[HeadScores], min_accuracy: float) -> tuple[tuple[int, Head], ...]:
    """See `Emergence.leader_changes`."""
    changes: list[tuple[int, Head]] = []
    for scores in history:
        leader = _leader(scores) if scores.unpatched >= min_accuracy else None
        if leader and (not changes or not scores.drop(changes[-1][1]) >= scores.drop(leader)):
            changes.append((scores.step, leader))
    return tuple(changes)


def _onset(steps: Sequence[int], holds: Sequence[bool]) -> Onset:
    """The first step from which on `holds` is always true."""
    first = len(holds)
    while first > 0 and holds[first - 1]:
        first -= 1
    if first == len(holds):
        return Onset(None, None)
    return Onset(steps[first], steps[first - 1] if first > 0 else None)


def _share(part: float, whole: float) -> float | None:
    """`part / whole`, clipped to 0..1; None if that means nothing."""
    if isnan(whole) or whole <= 0:
        return None
    return min(max(part / whole, 0.0), 1.0)


def _check_steps(steps: Sequence[int], values: Sequence[float] | None = None) -> None:
    """ValueError unless the steps ascend and there is one value for each."""
    for before, after in pairwise(steps):
        if after <= before:
            raise ValueError(f"step {after} comes after step {before}: give the history in ascending steps.")
    if values is not None and len(values) != len(steps):
        raise ValueError(f"there are {len(steps)} steps and {len(values)} values: give one value for each step.")
