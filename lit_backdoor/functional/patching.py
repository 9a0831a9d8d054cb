"""Head activation patching: give heads of one run the activations of another, and see what changes.

The recipient's run is repeated with the output of a set of heads (`hook_z`, at every position) replaced by
the donor's, and the answers at the probe's position are compared with the unpatched ones (paper, Section
2.2). With the triggered run as recipient and the benign one as donor this asks for *necessity*: a head whose
patching destroys the backdoor was needed for it. `probe.reversed()` asks for *sufficiency*: a head that
brings the backdoor into the benign run is enough for it. The two can differ (Heimersheim & Nanda, arXiv
2404.15255).

Several engines give the same numbers, up to rounding: `patching_engines` has the list, and takes the fastest that is
exact for the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from lit_backdoor.functional.heads import Head, Heads, HeadSet, all_heads, head_set, head_set_name
from lit_backdoor.functional.hooked_model import HookedModel, evaluating, row_slices
from lit_backdoor.functional.one_layer import HeadCache
from lit_backdoor.functional.patching_engines import patching_engine
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import Ablation, PatchingResult
from lit_backdoor.functional.row_threads import map_blocks
from lit_backdoor.functional.scores import average_scores, rows_within_memory, score_logits


def default_head_sets(n_layers: int, n_heads: int, max_all: int = 8) -> list[HeadSet]:
    """The sets worth patching, by size, then by index.

    All sets if there are at most `max_all` heads in total; else none, each single head, all but one, and all.

    Args:
        n_layers: of the model.
        n_heads: in each layer.
        max_all: so many heads in total still make all 2^heads sets.
    """
    heads = [Head(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    n = len(heads)
    sizes = set(range(n + 1)) if n <= max_all else {0, 1, n - 1, n}
    return [subset for size in sorted(sizes) for subset in combinations(heads, size)]


def patch_heads(
    model: HookedModel,
    probe: Probe,
    head_sets: Iterable[Heads],
    ablation: Ablation = "resample",
    caches: Sequence[HeadCache] = (),
) -> list[PatchingResult]:
    """Patch each of `head_sets` into the recipient's run; one result per set, in their order.

    The model's weights, mode, hooks and the random state stay as they are.

    Args:
        model: any `HookedModel` whose rows do not depend on one another.
        probe: the examples; own metrics in `probe.metrics` are reported in `extra`.
        head_sets: sets of heads, each a list of (layer, head), or a name such as `"L0H0+L0H2"` or `"none"`; for
            instance `default_head_sets(...)`.
        ablation: what replaces the heads' activations.
        caches: from `cache_probes`, to save the caching pass when several calls use the same weights.

    Raises:
        ValueError: no set of heads, a head that the model does not have, or an unknown ablation.
    """
    sets = [_checked(model, heads) for heads in ([head_sets] if isinstance(head_sets, str) else head_sets)]
    different = list(dict.fromkeys([(), *sets]))  # the first is unpatched: what the others are compared with
    probe = probe.to(model.W_U.device)
    with evaluating(model), patching_engine(model, probe, different, ablation, caches) as engine:

        def run(rows: slice) -> tuple[Tensor, Tensor | None]:
            logits = engine.logits(rows)  # [set, rows, vocab]
            score = score_logits(logits, logits[0], probe.recipient_answers[rows], probe.donor_answers[rows])
            return score, logits if probe.metrics else None

        blocks = list(
            row_slices(probe.n_examples, rows_within_memory(len(different), model.W_U.shape[1], engine.rows_at_once))
        )
        on_threads = engine.in_threads and model.W_U.device.type == "cpu"
        results = map_blocks(run, blocks) if on_threads else [run(rows) for rows in blocks]
    scores = torch.cat([score for score, _ in results], dim=-1)
    kept = [logits for _, logits in results if logits is not None]
    logits_by_set = torch.cat(kept, dim=1) if kept else [None] * len(different)
    by_set = {
        heads: PatchingResult(heads=heads, ablation=ablation, **average_scores(probe, score, logits))
        for heads, score, logits in zip(different, scores, logits_by_set, strict=True)
    }
    return [by_set[heads] for heads in sets]


def patched_logits(
    model: HookedModel,
    probe: Probe,
    heads: Heads,
    ablation: Ablation = "resample",
    caches: Sequence[HeadCache] = (),
) -> Tensor:
    """The logits at the probe's position after patching `heads`, [n, vocab]; see `patch_heads`.

    Raises:
        ValueError: no set of heads, a head that the model does not have, or an unknown ablation.
    """
    heads = _checked(model, heads)
    probe = probe.to(model.W_U.device)
    with evaluating(model), patching_engine(model, probe, [heads], ablation, caches) as engine:
        rows_at_once = rows_within_memory(1, model.W_U.shape[1], engine.rows_at_once)
        return torch.cat([engine.logits(rows)[0] for rows in row_slices(probe.n_examples, rows_at_once)])


def _checked(model: HookedModel, heads: Heads) -> HeadSet:
    """`heads` as a HeadSet; ValueError if the model does not have one of them."""
    known, subset = all_heads(model), head_set(heads)
    if unknown := [head for head in subset if head not in known]:
        raise ValueError(
            f"there is no head {head_set_name(unknown)}: the model has {head_set_name(known[:1])} "
            f"to {head_set_name(known[-1:])}."
        )
    return subset
