"""Head activation patching: give heads of one run the activations of another, and see what changes.

The recipient's run is repeated with the output of a set of heads (`hook_z`, at every position) replaced by
the donor's, and the answers at the probe's position are compared with the unpatched ones (paper, Section
2.2). With the triggered run as recipient and the benign one as donor this asks for *necessity*: a head whose
patching destroys the backdoor was needed for it. `probe.reversed()` asks for *sufficiency*: a head that
brings the backdoor into the benign run is enough for it. The two can differ (Heimersheim & Nanda, arXiv
2404.15255).

Two engines give the same numbers. Every model can be patched with hooks; for plain one-layer models
(`one_layer.no_shortcut`) all sets come out of one caching pass for each of the two runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any, get_args

import torch
from torch import Tensor

from lit_backdoor.functional import metrics
from lit_backdoor.functional.hooked import (
    Head,
    HeadSet,
    HookedModel,
    all_heads,
    evaluating,
    head_set,
    head_set_name,
    row_slices,
    z_name,
)
from lit_backdoor.functional.one_layer import HeadCache, find_cache, no_shortcut, readout
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import Ablation, PatchingResult
from lit_backdoor.functional.row_threads import map_blocks

RowsEngine = Callable[[slice], Callable[[HeadSet], Tensor]]
"""Rows of the probe to a function: the heads that are patched to the logits [rows, vocab]."""


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
    head_sets: Iterable[Iterable[tuple[int, int]]],
    ablation: Ablation = "resample",
    caches: Sequence[HeadCache] = (),
) -> list[PatchingResult]:
    """Patch each of `head_sets` into the recipient's run; one result per set, in their order.

    The model's weights, mode, hooks and the random state stay as they are.

    Args:
        model: any `HookedModel`.
        probe: the examples; own metrics in `probe.metrics` are reported in `extra`.
        head_sets: sets of (layer, head), for instance `default_head_sets(...)`.
        ablation: what replaces the heads' activations.
        caches: from `cache_probes`, to save the caching pass when several calls use the same weights.

    Raises:
        ValueError: a head that the model does not have, or an unknown ablation.
    """
    sets = [_checked(model, heads) for heads in head_sets]
    probe = probe.to(model.W_U.device)
    with evaluating(model):
        engine = _engine(model, probe, ablation, caches)

        def run(rows: slice) -> tuple[Tensor, Tensor | None]:
            patched = engine(rows)
            unpatched = patched(())
            logits = torch.stack([patched(heads) if heads else unpatched for heads in sets])
            score = _score(logits, unpatched, probe.recipient_answers[rows], probe.donor_answers[rows])
            return score, logits if probe.metrics else None

        blocks = list(row_slices(probe.n_examples, _rows_at_once(len(sets), model.W_U.shape[1])))
        threads_apart = no_shortcut(model) is None and model.W_U.device.type == "cpu"  # hooks belong to one model
        results = map_blocks(run, blocks) if threads_apart else [run(rows) for rows in blocks]
        scores = torch.cat([score for score, _ in results], dim=-1)
        kept = [logits for _, logits in results if logits is not None]
        logits_by_set = torch.cat(kept, dim=1) if kept else [None] * len(sets)
        return [
            _result(heads, probe, ablation, score, logits)
            for heads, score, logits in zip(sets, scores, logits_by_set, strict=True)
        ]


def patched_logits(
    model: HookedModel,
    probe: Probe,
    heads: Iterable[tuple[int, int]],
    ablation: Ablation = "resample",
    caches: Sequence[HeadCache] = (),
) -> Tensor:
    """The logits at the probe's position after patching `heads`, [n, vocab]; see `patch_heads`.

    Raises:
        ValueError: a head that the model does not have, or an unknown ablation.
    """
    heads = _checked(model, heads)
    probe = probe.to(model.W_U.device)
    with evaluating(model):
        engine = _engine(model, probe, ablation, caches)
        rows_at_once = _rows_at_once(1, model.W_U.shape[1])
        return torch.cat([engine(rows)(heads) for rows in row_slices(probe.n_examples, rows_at_once)])


def _checked(model: HookedModel, heads: Iterable[tuple[int, int]]) -> HeadSet:
    """`heads` as a HeadSet; ValueError if the model does not have one of them."""
    known, subset = all_heads(model), head_set(heads)
    if unknown := [head for head in subset if head not in known]:
        raise ValueError(
            f"there is no head {head_set_name(unknown)}: the model has {head_set_name(known[:1])} "
            f"to {head_set_name(known[-1:])}."
        )
    return subset


def _rows_at_once(n_sets: int, n_vocab: int) -> int:
    """So many rows that all sets' logits take at most 64 MB as float64; 256 stay in the processor's cache."""
    return min(max(2**23 // max(n_sets * n_vocab, 1), 1), 256)


def _score(logits: Tensor, unpatched: Tensor, recipient_answers: Tensor, donor_answers: Tensor) -> Tensor:
    """What is averaged later, float64 [set, 5, n]: answers as the recipient, as the donor, `logit_diff`,
    `log_prob`, `kl`; from `logits` [set, n, vocab], the unpatched ones [n, vocab], and the answers [n]."""
    log_q = metrics.log_probabilities(logits)
    given = metrics.predictions(logits)
    return torch.stack(
        [
            metrics.wide(given == recipient_answers),
            metrics.wide(given == donor_answers),
            metrics.logit_difference(log_q, recipient_answers, donor_answers),
            metrics.log_probability(log_q, recipient_answers),
            metrics.kl_divergence(metrics.log_probabilities(unpatched), log_q),
        ],
        dim=1,
    )


def _result(heads: HeadSet, probe: Probe, ablation: Ablation, score: Tensor, logits: Tensor | None) -> PatchingResult:
    """Average the scores [5, n] of one set; `logits` [n, vocab] are for the probe's own metrics, if any."""
    recipient, donor, logit_diff, log_prob, kl = score
    difference = metrics.mean(logit_diff, where=probe.answers_differ)
    return PatchingResult(
        heads=heads,
        recipient=probe.recipient,
        donor=probe.donor,
        ablation=ablation,
        n_examples=probe.n_examples,
        recipient_accuracy=metrics.mean(recipient).value,
        donor_accuracy=metrics.mean(donor).value,
        other_rate=metrics.mean(1 - recipient.maximum(donor)).value,
        logit_diff=difference.value,
        n_differing=difference.n,
        log_prob=metrics.mean(log_prob).value,
        kl=metrics.mean(kl).value,
        extra={name: float(metric(logits, probe)) for name, metric in probe.metrics.items() if logits is not None},
    )


def _engine(model: HookedModel, probe: Probe, ablation: Ablation, caches: Sequence[HeadCache]) -> RowsEngine:
    """The fast engine if the model allows it, else hooks."""
    if ablation not in get_args(Ablation):
        raise ValueError(f"ablation is {ablation!r}: choose one of {', '.join(get_args(Ablation))}.")
    if no_shortcut(model):
        return _hooks_engine(model, probe, ablation)
    return _one_layer_engine(model, probe, ablation, caches)


def _one_layer_engine(model: Any, probe: Probe, ablation: Ablation, caches: Sequence[HeadCache]) -> RowsEngine:
    """Patch at the read position only: sum of heads, MLP and unembedding (see `one_layer`)."""
    own = find_cache(model, caches, probe.recipient_tokens, probe.position)
    given = _replacement(find_cache(model, caches, probe.donor_tokens, probe.position).z, ablation)
    read = readout(model)
    W_O, b_O = model.W_O[0] @ read.weight, model.blocks[0].attn.b_O @ read.weight  # [head, d_head, k], [k]

    def engine(rows: slice) -> Callable[[HeadSet], Tensor]:
        z = own.z[rows]
        unpatched = own.resid_pre[rows] @ read.weight + z.flatten(1) @ W_O.flatten(0, 1) + (b_O + read.bias)
        change = (given[rows] - z).transpose(0, 1) @ W_O  # [head, rows, k]

        def patched(heads: HeadSet) -> Tensor:
            reads = unpatched.clone()
            for head in heads:
                reads += change[head.head]
            return read.finish(reads)

        return patched

    return engine


def _replacement(z: Tensor, ablation: Ablation) -> Tensor:
    """The donor's `z` [n, ...] to what replaces the recipient's, of the same shape."""
    if ablation == "mean":
        return z.mean(dim=0, keepdim=True).expand_as(z)
    return z if ablation == "resample" else torch.zeros_like(z)


def _hooks_engine(model: HookedModel, probe: Probe, ablation: Ablation) -> RowsEngine:
    """Patch every position through `run_with_hooks`, one run per set."""
    names = [z_name(layer) for layer in range(model.cfg.n_layers)]
    given_mean = _mean_z(model, probe.donor_tokens, names) if ablation == "mean" else {}

    def engine(rows: slice) -> Callable[[HeadSet], Tensor]:
        given = dict(given_mean) or _read_z(model, probe.donor_tokens[rows], names)

        def patched(heads: HeadSet) -> Tensor:
            def patch(layer: int) -> tuple[str, Callable[..., Tensor]]:
                own = [head.head for head in heads if head.layer == layer]

                def replace(z: Tensor, hook: Any) -> Tensor:  # [rows, pos, head, d_head]
                    z = z.clone()
                    z[:, :, own] = 0 if ablation == "zero" else given[names[layer]][:, :, own]
                    return z

                return names[layer], replace

            layers = sorted({head.layer for head in heads})
            logits = model.run_with_hooks(probe.recipient_tokens[rows], fwd_hooks=[patch(layer) for layer in layers])
            return logits[:, probe.position]

        return patched

    return engine


def _read_z(model: HookedModel, tokens: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Every layer's `z`, [rows, pos, head, d_head]."""
    _, cache = model.run_with_cache(tokens, names_filter=names)
    return {name: cache[name] for name in names}


def _mean_z(model: HookedModel, tokens: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Every layer's mean `z` over all of `tokens` [n, pos]; each [1, pos, head, d_head]."""
    total: dict[str, Tensor] = {}
    for rows in row_slices(len(tokens)):
        for name, z in _read_z(model, tokens[rows], names).items():
            total[name] = total.get(name, 0) + z.sum(dim=0, keepdim=True)
    return {name: z / len(tokens) for name, z in total.items()}
