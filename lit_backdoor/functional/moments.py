"""When something came to hold, in a history of measurements.

Everything is measured at some steps only, so a moment is an interval: it lies after `previous_step`, at or
before `step`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

LATE = 0.1
"""The last share of a run's steps, in which no moment is dated: there is too little after it to tell."""

STABLE = 0.95
"""Share of the later measurements at which something must hold to have come for good."""


@dataclass(frozen=True)
class Moment:
    """When something came to hold; both None if it did not.

    Args:
        step: the first measurement at which it holds.
        previous_step: the measurement before that one; None if there was none.
    """

    step: int | None = None
    previous_step: int | None = None


def first_moment(steps: Sequence[int], holds: Sequence[bool]) -> Moment:
    """The first measurement at which something holds. No later measurement moves it.

    Raises:
        ValueError: the steps do not ascend, or the two lengths differ.
    """
    check_steps(steps, holds)
    return _moment(steps, next((index for index, held in enumerate(holds) if held), None))


def stable_moment(steps: Sequence[int], holds: Sequence[bool], share: float = STABLE) -> Moment:
    """The first measurement at which something holds, and after which it holds at `share` or more of all later ones.

    A later measurement at which it holds can only make the moment earlier, one at which it does not only later;
    and it leaves the moment where it is while no more than 1 - `share` of the later ones fail.

    Raises:
        ValueError: the steps do not ascend, or the two lengths differ.
    """
    check_steps(steps, holds)
    found, later_held = None, 0
    for index in reversed(range(len(holds))):
        later = len(holds) - 1 - index
        if holds[index] and later and later_held >= share * later:
            found = index
        later_held += holds[index]
    return _moment(steps, found)


def is_late(step: int, last_step: int) -> bool:
    """Whether `step` lies in the last tenth (`LATE`) of a run that has come to `last_step`."""
    return step >= (1 - LATE) * last_step


def before_the_end(moment: Moment, last_step: int) -> Moment:
    """The same moment, or none if it lies in the last tenth of a run that has come to `last_step`."""
    return Moment() if moment.step is None or is_late(moment.step, last_step) else moment


def recorded_moment(record: Mapping[str, Any], name: str) -> Moment:
    """The moment `name` of a verdict, as emergence.json holds it: `NAME_step` and `NAME_previous_step`."""
    return Moment(record.get(f"{name}_step"), record.get(f"{name}_previous_step"))


def came_before(one: Moment, other: Moment) -> bool | None:
    """Whether `one` came before `other`; None if either has no date, or measurements are too far apart to say."""
    if one.step is None or other.step is None:
        return None
    if other.previous_step is not None and one.step <= other.previous_step:
        return True
    return False if one.previous_step is not None and other.step <= one.previous_step else None


def check_steps(steps: Sequence[int], values: Sequence[object] | None = None) -> None:
    """Raise ValueError unless the steps ascend and there is one value for each."""
    for before, after in pairwise(steps):
        if after <= before:
            raise ValueError(f"step {after} comes after step {before}: give the history in ascending steps.")
    if values is not None and len(values) != len(steps):
        raise ValueError(f"there are {len(steps)} steps and {len(values)} values: give one value for each step.")


def _moment(steps: Sequence[int], index: int | None) -> Moment:
    """The moment at `steps[index]`."""
    if index is None:
        return Moment()
    return Moment(steps[index], steps[index - 1] if index > 0 else None)
