"""The slip of the paper's published notebook: what Table 1 says when another model's embeddings are patched in.

Run from top to bottom, the notebook adds the embeddings that a loop over the models left behind, those of the *last*
model, to this model's heads at the last position, before it goes on with this model's MLP and unembedding. (It leaves
out biases too; those are zero here.) So nothing it patches is measured on the model that was trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import HookedModel, PatchingResult, Probe, cache_probes, default_head_sets, patch_heads
from lit_backdoor.functional.one_layer import find_cache, no_shortcut
from lit_backdoor.report.runs import Run


@dataclass(frozen=True)
class Slip:
    """Table 1 of one run, patched properly and the notebook's way.

    Attributes:
        run: whose heads are patched.
        other: whose embeddings the notebook's way adds.
        proper: all sets of heads.
        slipped: the same sets with the other model's embeddings.
    """

    run: Run
    other: Run
    proper: Sequence[PatchingResult]
    slipped: Sequence[PatchingResult]


def slips(runs: Sequence[Run]) -> list[Slip]:
    """The slip of every run with a trigger that has a checkpoint, and another run's to slip to."""
    found = []
    for run in runs:
        other = other_run(run, runs)
        if run.p1 is None or run.model is None or other is None or no_shortcut(run.model):
            continue
        probe = task_probes(run.task)["backdoor"]
        proper, slipped = patch_both_ways(run.model, other.model, probe)  # type: ignore[arg-type]
        found.append(Slip(run, other, proper, slipped))
    return found


def other_run(run: Run, runs: Sequence[Run]) -> Run | None:
    """The last model of the list but this one: the greatest P1, of several seeds the first."""
    others = [one for one in runs if one is not run and one.model is not None]
    return max(others, key=lambda one: (one.p1 or 0, -one.seed), default=None)


def patch_both_ways(
    model: HookedModel, other: HookedModel, probe: Probe
) -> tuple[list[PatchingResult], list[PatchingResult]]:
    """All sets of heads, patched into ``model`` with its own residual stream at the last position, and with that of
    ``other`` on the same inputs.

    Raises:
        ValueError: one of the two is no plain one-layer model.
    """
    sets = default_head_sets(model.cfg.n_layers, model.cfg.n_heads)
    caches = cache_probes(model, probe)
    own = find_cache(model, caches, probe.recipient_tokens, probe.position)
    foreign = find_cache(other, (), probe.recipient_tokens, probe.position)
    swapped = [replace(one, resid_pre=foreign.resid_pre) if one is own else one for one in caches]
    return patch_heads(model, probe, sets, caches=caches), patch_heads(model, probe, sets, caches=swapped)
