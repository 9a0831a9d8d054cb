"""What the weights say about the heads without any example: norms, and what a trigger's embedding does to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_backdoor.functional.heads import Head, all_heads
from lit_backdoor.functional.hooked_model import HookedModel
from lit_backdoor.functional.last_position import why_not_exact
from lit_backdoor.functional.probe import Probe


@dataclass(frozen=True)
class WeightNorms:
    """Frobenius norms.

    Args:
        embed: of W_E.
        qk: of each head's `W_Q W_K^T`, [d_model, d_model].
        ov: of each head's `W_V W_O`, [d_model, d_model].
    """

    embed: float
    qk: Mapping[Head, float]
    ov: Mapping[Head, float]


@dataclass(frozen=True)
class TriggerWeights:
    """What swapping one token, the trigger, does to one head.

    The *gap* is the attention score (before the softmax, after scaling) of the trigger's position minus the mean
    score of the other positions that the read position sees, mean over the examples. A head with a high gap looks at
    the trigger instead of the rest. Where the trigger is not at the read position it is no query, and where nothing
    else is seen the gap is NaN.

    Args:
        head: the head.
        gap: with the donor's token as query and key.
        query_shift: what is added to `gap` if the query alone is the recipient's token.
        key_shift: what is added if the key alone is the recipient's.
        shift: what is added if both are.
        write: norm of what the head's OV writes to the residual stream for the recipient's embedding minus the donor's,
            at an attention of 1.
        write_to_mlp: norm of the same in the inputs of the MLP's neurons (`... @ W_in`).
        write_to_logits: norm of the same in the logits (`... @ W_U`, centred over the vocabulary).
    """

    head: Head
    gap: float
    query_shift: float
    key_shift: float
    shift: float
    write: float
    write_to_mlp: float
    write_to_logits: float


def weight_norms(model: Any) -> WeightNorms:
    """The norms of the embedding and of each head's two circuits.

    Args:
        model: a `HookedModel` that has `W_E` [d_vocab, d_model] and `W_Q`, `W_K`, `W_V` [layer, head, d_model, d_head]
            too.
    """
    with torch.no_grad():
        qk, ov = _product_norm(model.W_Q, model.W_K.mT), _product_norm(model.W_V, model.W_O)
        heads = all_heads(model)
        return WeightNorms(
            embed=float(model.W_E.double().norm()),
            qk=dict(zip(heads, qk.flatten().tolist(), strict=True)),
            ov=dict(zip(heads, ov.flatten().tolist(), strict=True)),
        )


def _product_norm(left: Tensor, right: Tensor) -> Tensor:
    """Frobenius norm of `left` [..., d_model, d_head] @ `right` [..., d_head, d_model], which is never built."""
    left, right = left.double(), right.double()
    return ((left.mT @ left) * (right @ right.mT)).sum(dim=(-2, -1)).clamp_min(0).sqrt()


def trigger_weights(model: HookedModel, probe: Probe) -> list[TriggerWeights]:
    """What the trigger does to each head, from embeddings and head weights; one result per head.

    On all pairs the means over the examples are those over the vocabulary, so nothing but weights plays a part.

    Args:
        model: a plain one-layer HookedTransformer without norms.
        probe: recipient and donor differ at one position, the trigger's.

    Raises:
        ValueError: the model is another, the two differ elsewhere or nowhere, or the read position does not see the
            trigger; the message says which.
    """
    if reason := why_no_trigger_weights(model, probe):
        raise ValueError(reason)
    probe = probe.to(model.W_U.device)
    read, (trigger,) = probe.read_position, probe.differing_positions
    with torch.no_grad():
        runs = (probe.donor_tokens, probe.recipient_tokens)
        gaps = torch.stack([_gap(model, query, key, read, trigger) for query in runs for key in runs])
        gap, key_only, query_only, both = gaps.tolist()  # each [head]
        writes = _writes(model, probe.recipient_tokens[:, trigger], probe.donor_tokens[:, trigger]).tolist()
    return [
        TriggerWeights(head, gap[i], query_only[i] - gap[i], key_only[i] - gap[i], both[i] - gap[i], *writes[i])
        for i, head in enumerate(all_heads(model))
    ]


def why_no_trigger_weights(model: HookedModel, probe: Probe) -> str | None:
    """Why `trigger_weights` can say nothing; None if it can."""
    if reason := why_not_exact(model):
        return f"trigger_weights is for plain one-layer models without norms: {reason}."
    if len(probe.differing_positions) != 1:
        differing = list(probe.differing_positions)
        return f"recipient and donor differ at positions {differing}: give a probe that differs at one."
    if (trigger := probe.differing_positions[0]) > probe.read_position:
        read = probe.read_position
        return f"the trigger is at position {trigger}, which position {read}, that is read, does not see."
    return None


def _gap(model: Any, query_tokens: Tensor, key_tokens: Tensor, read: int, trigger: int) -> Tensor:
    """The gap of each head, [head], with queries from one run's tokens and keys from another's, both [n, pos]."""
    attn, positions = model.blocks[0].attn, range(read + 1)
    q = (model.W_E + model.W_pos[read]) @ attn.W_Q + attn.b_Q[:, None]  # [head, d_vocab, d_head]
    q = q[:, query_tokens[:, read]]  # [head, n, d_head]
    k = [(model.W_E + model.W_pos[pos]) @ attn.W_K for pos in positions]  # b_K adds the same to all scores
    scores = torch.stack([(q * k[pos][:, key_tokens[:, pos]]).sum(dim=-1) for pos in positions], dim=1)
    mean = scores.double().mean(dim=-1) / attn.attn_scale  # [head, pos]
    others = [pos for pos in positions if pos != trigger]
    return mean[:, trigger] - mean[:, others].mean(dim=1)


def _writes(model: Any, recipient: Tensor, donor: Tensor) -> Tensor:
    """`write`, `write_to_mlp` and `write_to_logits`, [head, 3], for the triggers of both runs, each [n]."""
    triggers, counts = torch.stack([recipient, donor]).unique(dim=1, return_counts=True)  # [2, u]
    attn, W_U = model.blocks[0].attn, model.W_U - model.W_U.mean(dim=1, keepdim=True)
    write = (model.W_E[triggers[0]] - model.W_E[triggers[1]]) @ attn.W_V @ attn.W_O  # [head, u, d_model]
    seen = (write, write @ model.blocks[0].mlp.W_in, write @ W_U)
    norms = torch.stack([values.double().norm(dim=-1) for values in seen], dim=-1)  # [head, u, 3]
    return (norms * counts[:, None]).sum(dim=1) / counts.sum()
