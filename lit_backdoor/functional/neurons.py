"""Which neurons of the MLP carry what the donor's run does not have.

In a plain one-layer model the logits are linear in the neurons' activations at the read position,
`logits = direct + act(pre) @ (W_out @ W_U)`. So the effect that one neuron mediates on a difference of logits is exact,
the effects of several add up, and patching k neurons more is one small matrix product more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_backdoor.functional import metrics
from lit_backdoor.functional.hooked_model import evaluating, row_slices
from lit_backdoor.functional.one_layer import HeadCache, find_cache, is_plain_mlp, why_no_shortcut
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import NeuronCounts
from lit_backdoor.functional.row_threads import map_blocks
from lit_backdoor.functional.specificity import accuracy_floor, cost_above_floor

N_STEPS = 32
"""The curves are read after so many equal steps from no neuron to all of them."""


@dataclass(frozen=True)
class NeuronCurve:
    """The recipient's rule while more and more neurons are patched.

    Args:
        counts: the numbers of neurons, ascending: `N_STEPS` equal steps from none to all, and every number inside the
            first step that reaches half (see `half`).
        accuracies: the share of the examples that give the answer of the recipient's rule, 0..1, for each of `counts`.
        half: the smallest of `counts` at which half of the unpatched accuracy above the floor is lost, or brought
            (`cost_above_floor` of 0.5); None if none.
    """

    counts: tuple[int, ...]
    accuracies: tuple[float, ...]
    half: int | None


@dataclass(frozen=True, eq=False)
class NeuronResult:
    """How many neurons carry the recipient's rule (the backdoor), and whether the donor's (the benign one) needs them.

    Args:
        effects: the mediated effect of each neuron, [d_mlp]: how much the logit of the recipient's answer minus that of
            the donor's falls when the neuron alone gets the donor's activation, mean over the `n_differing` examples
            where the answers differ. They add up to the effect of all neurons. NaN if no example differs.
        order: the neurons by falling effect, [d_mlp].
        left: the recipient's run, the neurons patched with the donor's activations in that order: what is necessary.
        brought: the donor's run, the neurons patched with the recipient's activations in that order: what suffices.
        donor_effects: how much the donor's rule needs each neuron in the donor's run, [d_mlp]: what the answer's logit,
            minus the mean logit, loses when the neuron alone is set to its mean over the run.
        overlap: the share of the first `left.half` neurons in `order` that are also among the first `left.half` by
            falling `donor_effects`, 0..1; NaN if `left.half` is None or 0.
        overlap_by_chance: what random orders would have on average, `left.half / d_mlp`; NaN as `overlap`.
        n_differing: see `effects`.
    """

    effects: Tensor
    order: Tensor
    left: NeuronCurve
    brought: NeuronCurve
    donor_effects: Tensor
    overlap: float
    overlap_by_chance: float
    n_differing: int

    @property
    def counts(self) -> NeuronCounts:
        """In a few numbers."""
        return NeuronCounts(
            n_neurons=len(self.order),
            needed=self.left.half,
            sufficient=self.brought.half,
            overlap=self.overlap,
            overlap_by_chance=self.overlap_by_chance,
            n_differing=self.n_differing,
        )


def patch_neurons(model: Any, probe: Probe, caches: Sequence[HeadCache] = ()) -> NeuronResult:
    """Patch the neurons of a probe's two runs into one another at the read position, most effective first.

    Args:
        model: a one-layer HookedTransformer with a plain MLP and without norms.
        probe: the triggered run as recipient, the benign one as donor.
        caches: from `cache_probes`.

    Raises:
        ValueError: the model is another; the message says why.
    """
    if reason := why_not_linear(model):
        raise ValueError(f"patch_neurons is for plain one-layer models without norms: {reason}.")
    probe = probe.to(model.W_U.device)
    with evaluating(model):
        weight = model.blocks[0].mlp.W_out @ model.W_U  # [d_mlp, vocab]
        own, given = (
            _run(model, find_cache(model, caches, tokens, probe.position))
            for tokens in (probe.recipient_tokens, probe.donor_tokens)
        )
        by_answer = weight.T  # [vocab, d_mlp]
        difference = by_answer[probe.recipient_answers.long()] - by_answer[probe.donor_answers.long()]
        n_differing = int(probe.answers_differ.sum())
        effects = _sum(own.post - given.post, difference) / (n_differing or nan)
        centered = by_answer[probe.donor_answers.long()] - by_answer.mean(dim=0)
        donor_effects = _sum(given.post - given.post.mean(dim=0), centered) / probe.n_examples
        order = effects.argsort(descending=True, stable=True)

        answers = probe.recipient_answers
        unpatched = metrics.accuracy(torch.addmm(own.direct, own.post, weight), answers).value
        lost = partial(cost_above_floor, unpatched, floor=accuracy_floor(probe))
        left = _curve(own, given, weight[order], order, answers, lambda accuracy: lost(accuracy) >= 0.5)
        brought = _curve(given, own, weight[order], order, answers, lambda accuracy: lost(accuracy) <= 0.5)
    overlap = by_chance = nan
    if left.half:
        donor_order = donor_effects.argsort(descending=True, stable=True)
        both = set(order[: left.half].tolist()) & set(donor_order[: left.half].tolist())
        overlap, by_chance = len(both) / left.half, left.half / len(order)
    return NeuronResult(effects, order, left, brought, donor_effects, overlap, by_chance, n_differing)


class _Run(NamedTuple):
    """One run at the read position: `logits = direct + post @ (W_out @ W_U)`."""

    direct: Tensor  # [n, vocab]
    post: Tensor  # [n, d_mlp], the neurons' activations


def why_not_linear(model: Any) -> str | None:
    """Why the logits are not linear in the neurons' activations; None if they are."""
    if reason := why_no_shortcut(model):
        return reason
    if model.cfg.normalization_type is not None:
        return f"cfg.normalization_type is {model.cfg.normalization_type!r}"
    if model.cfg.attn_only or not is_plain_mlp(model.blocks[0].mlp):
        return "it has no MLP, or not a plain one"
    return None


def _run(model: Any, cache: HeadCache) -> _Run:
    """From the heads to the neurons."""
    block = model.blocks[0]
    resid = cache.resid_pre + cache.z.flatten(1) @ block.attn.W_O.flatten(0, 1) + block.attn.b_O
    post = block.mlp.act_fn(torch.addmm(block.mlp.b_in, resid, block.mlp.W_in))
    return _Run(torch.addmm(model.unembed.b_U, resid + block.mlp.b_out, model.W_U), post)


def _sum(activations: Tensor, weights: Tensor) -> Tensor:
    """The sum over the rows of the product, both [n, d_mlp], float64 [d_mlp]."""
    return torch.stack(
        [metrics.wide(activations[rows] * weights[rows]).sum(0) for rows in row_slices(len(weights))]
    ).sum(0)


def _curve(
    run: _Run, other: _Run, weight: Tensor, order: Tensor, answers: Tensor, reached: Callable[[float], bool]
) -> NeuronCurve:
    """Accuracy of `run` on `answers` [n] with the first neurons of `order` from `other`; `weight` is in that order."""
    change = (other.post - run.post)[:, order]

    def accuracies(counts: Sequence[int]) -> list[float]:
        def correct(rows: slice) -> Tensor:  # [count]
            logits, before = torch.addmm(run.direct[rows], run.post[rows][:, order], weight), 0
            of_count = []
            for count in counts:
                logits.addmm_(change[rows, before:count], weight[before:count])
                of_count.append((metrics.predictions(logits) == answers[rows]).sum())
                before = count
            return torch.stack(of_count)

        blocks = list(row_slices(len(answers), 256))
        results = map_blocks(correct, blocks) if answers.device.type == "cpu" else [correct(rows) for rows in blocks]
        return [int(n) / len(answers) for n in torch.stack(results).sum(0)]

    grid = sorted({round(i * len(order) / N_STEPS) for i in range(N_STEPS + 1)})
    curve = dict(zip(grid, accuracies(grid), strict=True))
    if first := next((i for i, count in enumerate(grid) if reached(curve[count])), None):
        inside = range(grid[first - 1] + 1, grid[first])
        curve |= dict(zip(inside, accuracies(inside), strict=True)) if inside else {}
    counts = tuple(sorted(curve))
    half = next((count for count in counts if reached(curve[count])), None)
    return NeuronCurve(counts, tuple(curve[count] for count in counts), half)
