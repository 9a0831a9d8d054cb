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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from lit_backdoor.functional import metrics
from lit_backdoor.functional.ablation import Ablation
from lit_backdoor.functional.blocks import map_blocks
from lit_backdoor.functional.hooked import (
    Head,
    Heads,
    HeadSet,
    HookedModel,
    all_heads,
    evaluating,
    head_set,
    head_set_name,
    row_slices,
)
from lit_backdoor.functional.one_layer import HeadCache
from lit_backdoor.functional.patching_engines import Engine, patching_engine
from lit_backdoor.functional.probe import Probe


@dataclass(frozen=True)
class PatchingResult:
    """What one patched set of heads does to the recipient's run.

    Args:
        heads: the patched heads.
        recipient: the name of the run that was patched.
        donor: the name of the run that gave its activations.
        ablation: `resample`, `mean` or `zero`.
        n_examples: the number of examples.
        recipient_accuracy: share that still gives the recipient's answer.
        donor_accuracy: share that gives the donor's answer.
        other_rate: share that gives neither.
        logit_diff: recipient's minus donor's answer, mean over the `n_differing` examples where the answers
            differ; NaN if there are none.
        n_differing: see `logit_diff`.
        log_prob: mean log probability of the recipient's answer, nats.
        kl: mean KL(unpatched || patched), nats.
        extra: the probe's own metrics.
    """

    heads: HeadSet
    recipient: str
    donor: str
    ablation: Ablation
    n_examples: int
    recipient_accuracy: float
    donor_accuracy: float
    other_rate: float
    logit_diff: float
    n_differing: int
    log_prob: float
    kl: float
    extra: Mapping[str, float] = field(default_factory=dict)


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
            score = _score(logits, logits[0], probe.recipient_answers[rows], probe.donor_answers[rows])
            return score, logits if probe.metrics else None

        blocks = list(row_slices(probe.n_examples, _rows_at_once(engine, len(different), model.W_U.shape[1])))
        on_threads = engine.in_threads and model.W_U.device.type == "cpu"
        results = map_blocks(run, blocks) if on_threads else [run(rows) for rows in blocks]
    scores = torch.cat([score for score, _ in results], dim=-1)
    kept = [logits for _, logits in results if logits is not None]
    logits_by_set = torch.cat(kept, dim=1) if kept else [None] * len(different)
    by_set = {
        heads: _result(heads, probe, ablation, score, logits)
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
        rows_at_once = _rows_at_once(engine, 1, model.W_U.shape[1])
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


def _rows_at_once(engine: Engine, n_sets: int, n_vocab: int) -> int:
    """The engine's number of rows, or fewer, so that all sets' logits take at most 64 MB as float64."""
    return min(max(2**23 // (n_sets * n_vocab), 1), engine.rows_at_once)


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
