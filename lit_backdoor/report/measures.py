"""What is told about a run, computed from what it recorded."""

from collections.abc import Sequence

from lit_backdoor.functional import Head, HeadSet, PatchingResult, emergence
from lit_backdoor.report.roles import head_order
from lit_backdoor.report.runs import Run

THRESHOLD = 0.5
"""A head carries the backdoor if patching it alone costs at least this share of the accuracy."""

MIN_ACCURACY = 0.5
"""Backdoor accuracy from which a model counts as having the backdoor, as in ``emergence``."""


def triggered(runs: Sequence[Run]) -> list[Run]:
    """The runs with a trigger."""
    return [run for run in runs if run.p1 is not None]


def groups(runs: Sequence[Run]) -> dict[int, list[Run]]:
    """The runs with a trigger by P1."""
    found: dict[int, list[Run]] = {}
    for run in triggered(runs):
        assert run.p1 is not None
        found.setdefault(run.p1, []).append(run)
    return found


def order_of(run: Run) -> tuple[Head, ...]:
    """The heads of a run with a trigger by role."""
    return head_order(run.patching["backdoor"])


def drops(results: Sequence[PatchingResult]) -> dict[Head, float]:
    """What patching each head alone costs, as a share of the accuracy with nothing patched; NaN without any."""
    (unpatched,) = [one.recipient_accuracy for one in results if not one.heads]
    return {
        one.heads[0]: (unpatched - one.recipient_accuracy) / unpatched if unpatched > 0 else float("nan")
        for one in results
        if len(one.heads) == 1
    }


def carriers(results: Sequence[PatchingResult]) -> list[Head]:
    """The heads that carry the backdoor: patching each alone costs at least half of the accuracy.

    None while the accuracy is below ``MIN_ACCURACY``: then there is no backdoor yet to carry.
    """
    (unpatched,) = [one.recipient_accuracy for one in results if not one.heads]
    return [head for head, drop in drops(results).items() if unpatched >= MIN_ACCURACY and drop >= THRESHOLD]


def single_head_share(results: Sequence[PatchingResult]) -> float:
    """The costliest head's cost as a share of the sum of all heads' costs; NaN if none costs anything."""
    costs = [max(drop, 0.0) for drop in drops(results).values()]
    return max(costs) / sum(costs) if sum(costs) > 0 else float("nan")


def accuracies(run: Run) -> dict[str, dict[HeadSet, float]]:
    """The backdoor accuracy of every set of heads: what is left (needed), and what is brought (sufficient)."""
    return {
        "needed": {one.heads: one.recipient_accuracy for one in run.patching["backdoor"]},
        "sufficient": {one.heads: one.donor_accuracy for one in run.patching["benign"]},
    }


def with_all_sets(runs: Sequence[Run]) -> list[Run]:
    """The runs with a trigger of which all 2^H sets of heads were patched."""
    return [run for run in triggered(runs) if len(run.patching["backdoor"]) == 2 ** len(order_of(run))]


def emergence_lag(run: Run) -> int | None:
    """Steps from the benign rule's first 99% to the emergence of the head; None unless both have happened."""
    emerged, grokked = run.emergence["emergence_step"], run.emergence["benign_first_reached_step"]
    return None if emerged is None or grokked is None else emerged - grokked


def leaders(run: Run) -> tuple[tuple[int, Head], ...]:
    """(step, head) whenever another head than before costs most, the first one included."""
    return emergence(run.history["backdoor"]).leader_changes
