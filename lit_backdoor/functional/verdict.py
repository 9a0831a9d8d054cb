"""The verdict on a run, as emergence.json holds it: plain numbers, names and None, for writer and reader alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any, NamedTuple

from lit_backdoor.functional.emergence import HeadScores, head_emergence
from lit_backdoor.functional.heads import HeadSet, head_name
from lit_backdoor.functional.run_state import Curve, judge_run
from lit_backdoor.functional.shapley import effective_heads, shapley_values, shares


class AllSets(NamedTuple):
    """The recipient's accuracy with every set of heads patched, at one step."""

    step: int
    accuracies: Mapping[HeadSet, float]


def verdict_record(
    probe: str | None,
    history: Sequence[HeadScores],
    all_sets: AllSets | None,
    metrics: Mapping[str, Curve],
    floor: float = 0.0,
    threshold: float = 0.5,
    min_accuracy: float = 0.5,
) -> dict[str, Any]:
    """Where a behaviour sits among the heads and since when, and what the run has come to.

    The fields of `HeadEmergence.record` and `RunState.record`, and between them how concentrated the behaviour is at
    the last probe of all sets of heads: `shapley_step`, each head's share of what patching does (`shapley_shares`), and
    among how many heads that is spread (`effective_heads`). None where something has not happened or is undefined.

    Args:
        probe: name of the probe; None if there is none, then only the state of the run says something.
        history: of that probe, one entry per step.
        all_sets: the last measurement of all sets of heads; None without one.
        metrics: by name and step, for `judge_run`.
        floor, threshold, min_accuracy: for `head_emergence`.

    Raises:
        ValueError: the steps do not ascend, a parameter is out of range, or a set of heads is missing.
    """
    concentration: dict[str, Any] = {"shapley_step": None, "shapley_shares": None, "effective_heads": None}
    if all_sets is not None:
        result = shapley_values(all_sets.accuracies)
        spread = effective_heads(result)
        concentration["shapley_step"] = all_sets.step
        if not isnan(spread):
            concentration["shapley_shares"] = {head_name(*head): share for head, share in shares(result).items()}
            concentration["effective_heads"] = spread
    return {
        "probe": probe,
        **head_emergence(history, floor, threshold, min_accuracy).record(),
        **concentration,
        **judge_run(metrics).record(),
    }
