"""Does a head serve the backdoor alone? What it costs either rule when it is taken away.

A head is *necessary* for the backdoor if the backdoor goes when the head is given the benign run's activation, and
*specific* if the benign rule stays when the head is ablated in the benign run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan

from lit_backdoor.functional import metrics
from lit_backdoor.functional.heads import Head, all_heads
from lit_backdoor.functional.hooked_model import HookedModel
from lit_backdoor.functional.one_layer import HeadCache
from lit_backdoor.functional.patching import patch_heads
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import may_be_nan

MIN_ABOVE_FLOOR = 0.01
"""So little accuracy above the floor is nothing that could be lost."""


@dataclass(frozen=True)
class HeadSpecificity:
    """What one head costs the recipient's rule (the backdoor) and the donor's (the benign rule).

    Args:
        head: the head.
        cost: to the recipient's rule when the head gets the donor's activation, row by row: the share of the accuracy
            above the floor that goes, see `cost_above_floor`.
        donor_cost: the same to the donor's rule when the head gets its mean over the donor's run, in that run.
        selectivity: `cost` minus `donor_cost`, over their sum, -1..1; see `selectivity`.
    """

    head: Head
    cost: float = may_be_nan()
    donor_cost: float = may_be_nan()
    selectivity: float = may_be_nan()


def accuracy_floor(probe: Probe) -> float:
    """The recipient accuracy of a model that always gives the donor's answer, 0..1: where the two coincide.

    With all pairs, the backdoor as recipient and the benign run as donor, it is what is left of the backdoor's accuracy
    when the backdoor is gone: 0.88, 0.22, 1.20 and 5.51% for mod 1, 7, 17 and 37 over 113.
    """
    return metrics.mean(~probe.answers_differ).value


def cost_above_floor(unpatched: float, patched: float, floor: float) -> float:
    """The lost share of an accuracy above its floor: 1 if all is lost, 0 if nothing, negative if it rose.

    NaN where the unpatched accuracy is not more than `MIN_ABOVE_FLOOR` above the floor.
    """
    return (unpatched - patched) / (unpatched - floor) if unpatched - floor > MIN_ABOVE_FLOOR else nan


def selectivity(cost: float, donor_cost: float) -> float:
    """`(cost - donor_cost) / (cost + donor_cost)`, -1..1: 1 if the head serves the recipient's rule alone.

    A negative cost counts as 0. NaN where a cost is NaN or neither is above 0.
    """
    if isnan(cost) or isnan(donor_cost):
        return nan
    cost, donor_cost = max(cost, 0.0), max(donor_cost, 0.0)
    return (cost - donor_cost) / (cost + donor_cost) if cost + donor_cost > 0 else nan


def head_specificity(model: HookedModel, probe: Probe, caches: Sequence[HeadCache] = ()) -> list[HeadSpecificity]:
    """What each head costs both rules of a probe; one result per head, layer by layer.

    The floor of both costs is `accuracy_floor(probe)`, the share of examples where both rules give one answer.

    Args:
        model: any `HookedModel`.
        probe: the triggered run as recipient, the benign one as donor.
        caches: from `cache_probes`.
    """
    sets = [(), *([head] for head in all_heads(model))]
    probe = replace(probe, metrics={})
    donor = replace(
        probe,
        recipient_tokens=probe.donor_tokens,
        recipient_answers=probe.donor_answers,
        recipient=f"{probe.donor} itself",
    )
    unpatched, *patched = patch_heads(model, probe, sets, "resample", caches)
    intact, *ablated = patch_heads(model, donor, sets, "mean", caches)
    low, results = accuracy_floor(probe), []
    for head, necessary, specific in zip(all_heads(model), patched, ablated, strict=True):
        c1 = cost_above_floor(unpatched.recipient_accuracy, necessary.recipient_accuracy, low)
        c0 = cost_above_floor(intact.recipient_accuracy, specific.recipient_accuracy, low)
        results.append(HeadSpecificity(head, c1, c0, selectivity(c1, c0)))
    return results
