"""What is told about a run, computed from what it recorded."""

from collections.abc import Sequence

from lit_backdoor.functional import (
    Head,
    HeadSet,
    PatchingResult,
    ShapleyResult,
    effective_heads,
    head_emergence,
    shapley_values,
    shares,
)
from lit_backdoor.report.roles import head_order
from lit_backdoor.report.runs import Run

THRESHOLD = 0.5
"""A head carries the backdoor if patching it alone costs at least this share of it."""

MIN_ACCURACY = 0.5
"""Backdoor accuracy from which a model counts as having the backdoor, as in ``head_emergence``."""


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
    """What patching each head alone costs, as a share of the accuracy above the floor; NaN without any."""
    (unpatched,) = [one.recipient_accuracy for one in results if not one.heads]
    there = unpatched - results[0].floor
    return {
        one.heads[0]: (unpatched - one.recipient_accuracy) / there if there > 0 else float("nan")
        for one in results
        if len(one.heads) == 1
    }


def carriers(results: Sequence[PatchingResult]) -> list[Head]:
    """The heads that carry the backdoor: patching each alone costs at least half of it.

    None while the accuracy is below ``MIN_ACCURACY``: then there is no backdoor yet to carry.
    """
    (unpatched,) = [one.recipient_accuracy for one in results if not one.heads]
    return [head for head, drop in drops(results).items() if unpatched >= MIN_ACCURACY and drop >= THRESHOLD]


def largest_share(results: Sequence[PatchingResult]) -> float:
    """The largest Shapley share of what patching does; NaN unless all sets of heads were patched."""
    result = _shapley(results)
    return float("nan") if result is None else max(shares(result).values())


def spread(results: Sequence[PatchingResult]) -> float:
    """Among how many heads what patching does is spread; NaN unless all sets of heads were patched."""
    result = _shapley(results)
    return float("nan") if result is None else effective_heads(result)


def _shapley(results: Sequence[PatchingResult]) -> ShapleyResult | None:
    n_heads = max(len(one.heads) for one in results)
    if len(results) != 2**n_heads:
        return None
    return shapley_values({one.heads: one.recipient_accuracy for one in results})


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
    """Steps from when the benign rule generalised to when a head was alone for good; None unless both happened."""
    alone, generalised = run.emergence["stable_exclusive_step"], run.emergence["benign_generalised_step"]
    return None if alone is None or generalised is None else alone - generalised


def large_spikes(run: Run) -> int:
    """How many loss spikes of a run stand out by a power of ten or more."""
    return sum(float(spike["prominence"]) >= 1 for spike in run.spikes)


def leaders(run: Run) -> tuple[tuple[int, Head], ...]:
    """(step, head) whenever another head than before costs most, the first one included."""
    return head_emergence(run.history["backdoor"], run.patching["backdoor"][0].floor).leader_changes
