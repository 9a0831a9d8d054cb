"""The bug of the paper's published notebook: what Table 1 says when another model's embeddings are patched in.

Run from top to bottom, the notebook adds the embeddings that a loop over the models left behind, those of the *last*
model, to this model's heads at the last position, before it goes on with this model's MLP and unembedding. (It leaves
out biases too; those are zero here.) So nothing it patches is measured on the model that was trained.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import (
    HookedModel,
    PatchingResult,
    Probe,
    cache_probes,
    default_head_sets,
    head_set_name,
    patch_heads,
)
from lit_backdoor.functional.one_layer import find_cache, why_no_shortcut
from lit_backdoor.functional.ranks import head_order, ranks_of
from lit_backdoor.report.measures import label, with_progress
from lit_backdoor.runs.run import Run


def foreign_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """foreign_embeddings.csv: every set of heads, patched properly and with the notebook's bug.

    Of every run with a trigger that has weights, and another run's to take embeddings from.
    """
    rows = []
    for run in with_progress(runs, "the notebook's bug"):
        other = other_run(run, runs)
        if run.model is None or other is None or why_no_shortcut(run.model):
            continue
        probe = task_probes(run.task)["backdoor"]  # type: ignore[arg-type]
        proper, foreign = patch_both_ways(run.model, other.model, probe)  # type: ignore[arg-type]
        order = head_order({result.heads: result.recipient_accuracy for result in proper})
        for own, swapped in zip(proper, foreign, strict=True):
            row = label(run) | {"heads": head_set_name(own.heads), "ranks": ranks_of(own.heads, order)}
            for name, result in (("", own), ("foreign_", swapped)):
                row |= {f"{name}backdoor_accuracy": result.recipient_accuracy}
                row |= {f"{name}benign_accuracy": result.donor_accuracy}
            rows.append(row | {"floor": own.floor, "other_run": other.name, "step": run.checkpoint_step})
    return pd.DataFrame(rows)


def other_run(run: Run, runs: Sequence[Run]) -> Run | None:
    """The last model of the list but this one: the greatest P1, of several seeds the first."""
    others = [candidate for candidate in runs if candidate is not run and candidate.model is not None]
    return max(others, key=lambda candidate: (candidate.p1 or 0, -(candidate.seed or 0)), default=None)


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
    swapped = [replace(cache, resid_pre=foreign.resid_pre) if cache is own else cache for cache in caches]
    return patch_heads(model, probe, sets, caches=caches), patch_heads(model, probe, sets, caches=swapped)
