"""Does a head turn its attention before it costs anything? When a counterfactual captures a head's attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_backdoor.functional.heads import Head, head_name
from lit_backdoor.functional.moments import Moment, before_the_end, check_steps, first_moment

LEAST_SHIFT = 0.1
"""A head whose attention moves less than this at the end is captured by nothing."""


@dataclass(frozen=True)
class AttentionShift:
    """How much of each head's attention the counterfactual moves, at one step.

    Args:
        step: optimizer steps done.
        moved: by head, 0..1; see `attention_moved`.
    """

    step: int
    moved: Mapping[Head, float]


def capture_record(history: Sequence[AttentionShift], first_cost_step: int | None) -> dict[str, Any]:
    """When attention was captured, and how long before some head cost anything.

    `capture_head` is the head whose attention is moved most at the last measurement; None if that is less than
    `LEAST_SHIFT`. The capture is the first measurement at which it is moved at least half as much as then; as every
    moment, it lies after `capture_previous_step` and is none in the last tenth of the run. `capture_lag` is
    `first_cost_step` minus `capture_step`. Both are known only to the distance between two measurements, so which came
    first is for `came_before` to say.

    Args:
        history: in ascending steps; may be empty.
        first_cost_step: the first step at which some head is costly; see `HeadEmergence`.

    Raises:
        ValueError: the steps do not ascend.
    """
    steps = [shift.step for shift in history]
    check_steps(steps)
    head, moment = None, Moment()
    if history:
        final = history[-1].moved
        leader = max(sorted(final), key=lambda each: final[each])
        if final[leader] >= LEAST_SHIFT:
            head = leader
            captured = [shift.moved[leader] >= final[leader] / 2 for shift in history]
            moment = before_the_end(first_moment(steps, captured), steps[-1])
    both = moment.step is not None and first_cost_step is not None
    return {
        "capture_head": None if head is None else head_name(*head),
        "capture_step": moment.step,
        "capture_previous_step": moment.previous_step,
        "capture_lag": first_cost_step - moment.step if both else None,  # type: ignore[operator]
    }
