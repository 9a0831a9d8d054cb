"""Path patching of a plain one-layer model, exact and without a forward pass for each set of edges.

A head reads the embeddings three times, as query, keys and values, and is read twice, by the MLP and by the logits.
Queries, keys and values of both runs are computed once. A set of edges then chooses between the two runs at each of
these places, which leaves a softmax over the positions, a sum over the heads, the MLP and the unembedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_backdoor.functional.edge_sets import sending_positions
from lit_backdoor.functional.edges import Edge, EdgesEngine, EdgeSet
from lit_backdoor.functional.hooked_model import HookedModel, carries_hooks
from lit_backdoor.functional.last_position import why_not_exact
from lit_backdoor.functional.one_layer import readout, why_no_shortcut
from lit_backdoor.functional.probe import Probe


def is_plain(model: HookedModel) -> bool:
    """Whether `model` is a causal HookedTransformer of one layer, without norms, hooks and clamp, with a plain MLP."""
    return why_no_shortcut(model) is None and why_not_exact(model) is None and not carries_hooks(model)


def one_layer_engine(model: Any, probe: Probe, edge_sets: Iterable[EdgeSet]) -> EdgesEngine:
    """The engine for `edge_sets` and no others.

    Args:
        model: one that `is_plain`.
        probe: on the model's device.
        edge_sets: sets of edges that the model has.
    """
    read, attn, d_mlp = readout(model), model.blocks[0].attn, model.blocks[0].mlp.d_mlp
    W_O, b_O = attn.W_O @ read.weight, attn.b_O @ read.weight  # [head, d_head, k], [k]
    choices = {edges: _choice(model, probe, edges) for edges in edge_sets}
    sinks = {"mlp": slice(d_mlp), "logits": slice(d_mlp, None)}  # which of the k columns each of them reads

    def engine(rows: slice) -> Callable[[EdgeSet], Tensor]:
        own, donor = (_run(model, t[rows], probe.read_position) for t in (probe.recipient_tokens, probe.donor_tokens))
        embeds = [run.x @ read.weight + (b_O + read.bias) for run in (own, donor)]  # each [rows, k]
        writes = [_z(run, attn.attn_scale) @ W_O for run in (own, donor)]  # each [head, rows, k]

        def patched(edges: EdgeSet) -> Tensor:
            choice, now = choices[edges], list(writes[0])
            for head, takes in choice.inputs.items():
                now[head] = _z(_mix(own, donor, head, takes), attn.attn_scale) @ W_O[head]
            reads = torch.empty_like(embeds[0])
            for sink, columns in sinks.items():
                total = reads[:, columns].copy_(embeds[sink in choice.direct][:, columns])
                for head, write in enumerate(now):
                    total += (writes[1][head] if (head, sink) in choice.after else write)[:, columns]
            return read.finish(reads)

        return patched

    return engine


class _Run(NamedTuple):
    """What the heads of one run read the embeddings as, and the embedding itself at the position that is read."""

    x: Tensor  # [rows, d_model]
    q: Tensor  # [head, rows, d_head]
    k: Tensor  # [head, rows, pos, d_head]
    v: Tensor  # [head, rows, pos, d_head]


def _run(model: Any, tokens: Tensor, position: int) -> _Run:
    """Queries at `position`, keys and values at the positions that it sees."""
    attn, x = model.blocks[0].attn, model.W_E[tokens[:, : position + 1].long()] + model.W_pos[: position + 1]
    return _Run(
        x[:, -1],
        torch.einsum("nm,hmd->hnd", x[:, -1], attn.W_Q) + attn.b_Q[:, None],
        torch.einsum("npm,hmd->hnpd", x, attn.W_K) + attn.b_K[:, None, None],
        torch.einsum("npm,hmd->hnpd", x, attn.W_V) + attn.b_V[:, None, None],
    )


def _mix(own: _Run, donor: _Run, head: int, takes: Tensor) -> _Run:
    """One head's inputs, without the head dimension; the donor's where `takes` [3, pos, 1] says so of Q, K and V."""
    q, k, v = takes
    return _Run(
        own.x,
        torch.where(q[-1], donor.q[head], own.q[head]),
        torch.where(k, donor.k[head], own.k[head]),
        torch.where(v, donor.v[head], own.v[head]),
    )


def _z(run: _Run, scale: float) -> Tensor:
    """The attention-weighted values, [..., rows, d_head]."""
    pattern = ((run.k * run.q.unsqueeze(-2)).sum(-1) / scale).softmax(-1)  # [..., rows, pos]
    return (run.v * pattern.unsqueeze(-1)).sum(-2)


class _Choice(NamedTuple):
    """What a set of edges takes from the donor's run; all else is the patched run's."""

    inputs: dict[int, Tensor]  # of a head: bool [3, pos, 1], at which positions its Q, K and V
    direct: set[str]  # "mlp", "logits": who reads the embedding
    after: set[tuple[int, str]]  # head and who reads its output


def _choice(model: HookedModel, probe: Probe, edges: Iterable[Edge]) -> _Choice:
    """The same as `edges`, for a one-layer model."""
    n_seen, device = probe.read_position + 1, model.W_U.device
    choice = _Choice({}, set(), set())
    for edge in edges:
        part, _, head = edge.receiver
        if head is not None:
            takes = choice.inputs.setdefault(head, torch.zeros(3, n_seen, 1, dtype=torch.bool, device=device))
            takes["QKV".index(part), [p for p in sending_positions(probe, edge) if p < n_seen]] = True
        elif isinstance(edge.sender, str):
            choice.direct.add(part)
        else:
            choice.after.add((edge.sender.head, part))
    return choice
