"""Where the heads look, and what a counterfactual changes about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor

from lit_backdoor.functional import metrics
from lit_backdoor.functional.heads import Head, all_heads
from lit_backdoor.functional.hooked_model import HookedModel, evaluating, row_slices, z_name
from lit_backdoor.functional.last_position import last_position_attention, why_not_exact
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import PositionAttention
from lit_backdoor.functional.weights import TriggerWeights, trigger_weights, why_no_trigger_weights


@dataclass(frozen=True)
class HeadAttention:
    """Where one head looks from the read position in a probe's two runs, and how much its output differs.

    The examples are a population: standard deviations divide by their number.

    Args:
        head: the head.
        recipient: mean attention to each position in the recipient's run, 0..1; sums to 1.
        recipient_std: its standard deviation over the examples.
        donor: mean attention to each position in the donor's run.
        donor_std: its standard deviation over the examples.
        shift: `recipient` minus `donor`; sums to 0.
        shift_std: standard deviation over the examples of the two runs' difference, row by row.
        entropy: of the attention in the recipient's run, mean over the examples, nats; 0 where the head looks at one
            position, ln(pos) where it looks at all alike.
        donor_entropy: the same in the donor's run.
        output_change: norm of the recipient's minus the donor's output of the head (`z @ W_O`), mean over the
            examples; in units of the residual stream.
        n_examples: the number of examples.
    """

    head: Head
    recipient: tuple[float, ...]
    recipient_std: tuple[float, ...]
    donor: tuple[float, ...]
    donor_std: tuple[float, ...]
    shift: tuple[float, ...]
    shift_std: tuple[float, ...]
    entropy: float
    donor_entropy: float
    output_change: float
    n_examples: int


def mean_attention(model: HookedModel, tokens: Tensor, position: int = -1) -> Tensor:
    """Attention from one position, after the softmax, mean over the examples.

    Args:
        model: any `HookedModel` that has the hook points `blocks.{layer}.attn.hook_pattern`.
        tokens: [n, pos].
        position: the position that attends, as an index into pos.

    Returns:
        [layer, head, pos], 0..1; sums to 1 over pos.

    Raises:
        ValueError: the model has no such hook point.
    """
    with evaluating(model):
        patterns = [pattern for pattern, _ in _read(model, tokens.to(model.W_U.device), position)]
        return torch.cat(patterns, dim=2).mean(dim=2)


def compare_attention(model: HookedModel, probe: Probe) -> list[HeadAttention]:
    """Where each head looks in the two runs of a probe; one result per head, layer by layer.

    Args:
        model: any `HookedModel` that has the hook points `blocks.{layer}.attn.hook_pattern`.
        probe: the examples; attention is read from its position.

    Raises:
        ValueError: the model has no such hook point.
    """
    probe = probe.to(model.W_U.device)
    patterns, changes = [], []
    with evaluating(model):
        runs = (_read(model, tokens, probe.position) for tokens in (probe.recipient_tokens, probe.donor_tokens))
        for (recipient, z), (donor, given_z) in zip(*runs, strict=True):
            patterns.append(torch.stack([recipient, donor, recipient - donor]))
            changes.append(((z - given_z) @ model.W_O).norm(dim=-1))  # [layer, head, rows]
    pattern = metrics.wide(torch.cat(patterns, dim=3)).flatten(1, 2)  # [3, layer * head, n, pos]
    change = metrics.wide(torch.cat(changes, dim=2)).mean(dim=2).flatten()  # [layer * head]
    entropy = torch.special.entr(pattern[:2]).sum(dim=3).mean(dim=2)  # [2, layer * head]; 0 ln 0 is 0
    mean, std = pattern.mean(dim=2).tolist(), pattern.std(dim=2, correction=0).tolist()
    return [
        HeadAttention(
            head=head,
            recipient=tuple(mean[0][i]),
            recipient_std=tuple(std[0][i]),
            donor=tuple(mean[1][i]),
            donor_std=tuple(std[1][i]),
            shift=tuple(mean[2][i]),
            shift_std=tuple(std[2][i]),
            entropy=float(entropy[0, i]),
            donor_entropy=float(entropy[1, i]),
            output_change=float(change[i]),
            n_examples=probe.n_examples,
        )
        for i, head in enumerate(all_heads(model))
    ]


def attention_by_position(model: HookedModel, probe: Probe) -> list[PositionAttention]:
    """The same, a result for each head and position, with what the weights alone say of the head.

    Args, Raises: as for `compare_attention`.
    """
    plain = why_no_trigger_weights(model, probe) is None
    weights = {result.head: result for result in trigger_weights(model, probe)} if plain else {}
    undefined = (nan,) * 7
    results = []
    for result in compare_attention(model, probe):
        of_head = weights.get(result.head) or TriggerWeights(result.head, *undefined)
        results += [
            PositionAttention(
                head=result.head,
                position=position,
                attention=result.recipient[position],
                attention_std=result.recipient_std[position],
                donor_attention=result.donor[position],
                donor_attention_std=result.donor_std[position],
                shift=result.shift[position],
                shift_std=result.shift_std[position],
                entropy=result.entropy,
                donor_entropy=result.donor_entropy,
                output_change=result.output_change,
                score_gap=of_head.gap,
                query_gap_shift=of_head.query_shift,
                key_gap_shift=of_head.key_shift,
                gap_shift=of_head.shift,
                write=of_head.write,
                write_to_mlp=of_head.write_to_mlp,
                write_to_logits=of_head.write_to_logits,
                n_examples=result.n_examples,
            )
            for position in range(len(result.shift))
        ]
    return results


def attention_moved(results: Iterable[PositionAttention]) -> dict[Head, float]:
    """How much of each head's attention sits elsewhere than in the donor's run, 0..1: half the sum of all shifts."""
    moved: dict[Head, float] = {}
    for result in results:
        moved[result.head] = moved.get(result.head, 0.0) + abs(result.shift) / 2
    return moved


def _read(model: Any, tokens: Tensor, position: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time, attention [layer, head, rows, pos] and `z` [layer, head, rows, d_head] at `position`."""
    if why_not_exact(model) is None and position in (-1, tokens.shape[1] - 1):
        yield _read_from_tables(model, tokens)
        return
    layers = range(model.cfg.n_layers)
    patterns, zs = [f"blocks.{layer}.attn.hook_pattern" for layer in layers], [z_name(layer) for layer in layers]
    for rows in row_slices(len(tokens)):
        _, cache = model.run_with_cache(tokens[rows], names_filter=patterns + zs)
        if missing := sorted({*patterns, *zs} - set(cache.keys())):
            raise ValueError(f"{type(model).__name__} has no hook points {missing}, where attention is read.")
        # A pattern is [rows, head, pos, pos that is looked at], z is [rows, pos, head, d_head].
        yield (
            torch.stack([cache[name][:, :, position].transpose(0, 1) for name in patterns]),
            torch.stack([cache[name][:, position].transpose(0, 1) for name in zs]),
        )


def _read_from_tables(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The same at the last position of a model with the exact last-position form, all rows at once."""
    _, pattern, z = last_position_attention(model, tokens)
    return pattern.transpose(0, 1)[None], z.transpose(0, 1)[None]
