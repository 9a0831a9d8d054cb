"""The edges of a model, seen from what differs between a probe's two runs, and what they are called.

A *sender* writes to the residual stream: the embeddings at the positions where recipient and donor differ (called
`Probe.sender`, "trigger" in the backdoor task), or a head. A *receiver* reads it: the query, key or value input of a
head, the input of an MLP, or the unembedding (with the norm before it). An edge joins a sender to a receiver behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from torch import Tensor

from lit_backdoor.functional.hooked import Head, HookedModel, all_heads, head_name

if TYPE_CHECKING:
    from lit_backdoor.functional.probe import Probe

SENDER_NAME = r"(?!L\d+H\d+$)[A-Za-z]\w*"
"""What `Probe.sender` may be: a word that is no head's name."""

Part = Literal["Q", "K", "V", "mlp", "logits"]
"""What a receiver is: the query, key or value input of a head, the input of an MLP, or the unembedding."""

EdgeGroup = Literal["Q", "K", "V", "QK", "QKV", "D", "A_mlp", "A_logits"]
"""Edges of one kind: from the embeddings into every head's Q, K or V, past the heads (D: direct), and from every head
into the MLPs or the logits."""


class Receiver(NamedTuple):
    """What reads the residual stream; `layer` is None for the logits and for the MLP of a one-layer model."""

    part: Part
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class Edge:
    """From what `sender` writes at `position` into what `receiver` reads.

    Args:
        sender: a head, or the probe's name for the embeddings.
        receiver: what reads.
        position: the only position of the sender that counts, from 0; None for all.
    """

    sender: Head | str
    receiver: Receiver
    position: int | None = None


EdgeSet = tuple[Edge, ...]
"""Edges in order (from the embeddings first, then by the sender's and the receiver's place), each at most once."""

EdgesEngine = Callable[[slice], Callable[[EdgeSet], Tensor]]
"""Rows of the probe to a function: the edges that see the donor to the logits [rows, vocab]."""


def edge_name(edge: Edge) -> str:
    """For instance `trigger>L0H2.Q`, `L0H2>mlp`, `trigger@2>L1.mlp` or `L0H1>logits`."""
    sender = edge.sender if isinstance(edge.sender, str) else head_name(*edge.sender)
    position = "" if edge.position is None else f"@{edge.position}"
    part, layer, head = edge.receiver
    if layer is None:
        receiver: str = part
    else:
        receiver = f"L{layer}.{part}" if head is None else f"{head_name(layer, head)}.{part}"
    return f"{sender}{position}>{receiver}"


def edge_set_name(edges: Iterable[Edge]) -> str:
    """Edges to `"none"` or `"trigger>L0H0.Q+trigger>L0H1.Q"`, always in order."""
    return "+".join(map(edge_name, edge_set(edges))) or "none"


def parse_edge_set(name: str) -> EdgeSet:
    """The way back from `edge_name` and `edge_set_name`.

    Raises:
        ValueError: `name` is neither "none" nor edges joined by "+".
    """
    if name == "none":
        return ()
    matches = [_EDGE.fullmatch(part) for part in name.split("+")]
    if not all(matches):
        raise ValueError(
            f'{name!r} is not a set of edges: write "none", "trigger>L0H2.Q", "L0H2>mlp" or "L0H0>L1H1.K+L0H1>logits".'
        )
    return edge_set(_edge(match) for match in matches if match)


def edge_set(edges: Iterable[Edge]) -> EdgeSet:
    """Any edges, in order and without repetitions."""
    return tuple(sorted(set(edges), key=_order))


def all_edges(model: HookedModel, probe: Probe) -> EdgeSet:
    """All edges, each from all positions of its sender, through which the donor can reach the recipient's answer.

    There is none from the embeddings into what reads only positions where recipient and donor do not differ.
    """
    return tuple(edge for edge in _joined(model, probe) if _reaches_answer(model, probe, edge))


def edge_groups(model: HookedModel, probe: Probe) -> dict[EdgeGroup, EdgeSet]:
    """The edges of each kind, over all heads of all layers; kinds that the model and the probe lack are left out.

    Where there is no query edge, as with the trigger in front, `QK` would be `K` again and is left out too.
    """
    edges = all_edges(model, probe)

    def members(from_head: bool, *parts: Part) -> EdgeSet:
        return tuple(e for e in edges if isinstance(e.sender, Head) == from_head and e.receiver.part in parts)

    candidates: dict[EdgeGroup, EdgeSet] = {
        "Q": members(False, "Q"),
        "K": members(False, "K"),
        "V": members(False, "V"),
        "QK": members(False, "Q", "K"),
        "QKV": members(False, "Q", "K", "V"),
        "D": members(False, "mlp", "logits"),
        "A_mlp": members(True, "mlp"),
        "A_logits": members(True, "logits"),
    }
    groups: dict[EdgeGroup, EdgeSet] = {}
    for group, group_edges in candidates.items():
        if group_edges and group_edges not in groups.values():
            groups[group] = group_edges
    return groups


def default_edge_sets(model: HookedModel, probe: Probe, max_single: int = 128) -> list[EdgeSet]:
    """The sets worth patching: none, the groups, each single edge, and each head's query and key together.

    Query and key meet in the softmax, so what they carry jointly is not the sum of what each carries.

    Args:
        model: the model.
        probe: the examples.
        max_single: a model with more edges than this gets the groups alone.
    """
    groups, edges = edge_groups(model, probe), all_edges(model, probe)
    by_head: dict[tuple[int | None, int | None], list[Edge]] = {}
    for edge in groups.get("QK", ()):
        by_head.setdefault(edge.receiver[1:], []).append(edge)
    fine: list[EdgeSet] = [*((edge,) for edge in edges), *map(tuple, by_head.values())]
    return list(dict.fromkeys([(), *groups.values(), *(fine if len(edges) <= max_single else ())]))


def check_edges(model: HookedModel, probe: Probe, edges: Iterable[Edge]) -> None:
    """Make sure that the donor can reach the recipient's answer through each of `edges`.

    Raises:
        ValueError: the model has no such edge, or the donor does not reach the answer through it.
    """
    joined, heads = set(_joined(model, probe)), all_heads(model)
    ends = ", ".join(edge_name(Edge("", receiver))[1:] for receiver in _after_heads(model))
    for edge in edges:
        if replace(edge, position=None) not in joined:
            raise ValueError(
                f"there is no edge {edge_name(edge)}: edges lead from {probe.sender} or a head to Q, K or V of a later "
                f"head or to {ends}; the model has {head_name(*heads[0])} to {head_name(*heads[-1])}."
            )
        if not _reaches_answer(model, probe, edge):
            raise ValueError(
                f"the edge {edge_name(edge)} carries nothing: recipient and donor differ at the positions "
                f"{list(probe.differing_positions)}, and the answer is read at {probe.read_position}."
            )


def sending_positions(probe: Probe, edge: Edge) -> tuple[int, ...]:
    """The positions at which the sender of `edge` may write something else in the donor's run."""
    known = probe.differing_positions if isinstance(edge.sender, str) else range(probe.recipient_tokens.shape[1])
    return tuple(known if edge.position is None else {edge.position} & set(known))


_EDGE = re.compile(
    rf"(?:L(?P<sender_layer>\d+)H(?P<sender_head>\d+)|(?P<sender>{SENDER_NAME}))(?:@(?P<position>\d+))?>"
    r"(?:L(?P<layer>\d+)(?:H(?P<head>\d+)\.(?P<input>[QKV])|\.(?P<mlp>mlp))|(?P<end>mlp|logits))"
)


def _edge(match: re.Match[str]) -> Edge:
    def number(name: str) -> int | None:
        return None if match[name] is None else int(match[name])

    part: Any = match["input"] or match["mlp"] or match["end"]
    sender = match["sender"] or Head(int(match["sender_layer"]), int(match["sender_head"]))
    return Edge(sender, Receiver(part, number("layer"), number("head")), number("position"))


def _order(edge: Edge) -> tuple[object, ...]:
    """What edges are sorted by."""
    layer, head, part = edge.receiver.layer, edge.receiver.head, edge.receiver.part
    sender = (0, edge.sender) if isinstance(edge.sender, str) else (1, *edge.sender)
    # Of one layer: attention, then MLP; after all layers the logits.
    receiver = (part == "logits", layer or 0, part == "mlp", head or 0, get_args(Part).index(part))
    return sender, -1 if edge.position is None else edge.position, receiver


def _after_heads(model: HookedModel) -> list[Receiver]:
    """The MLPs, layer by layer, and the logits."""
    n_layers = model.cfg.n_layers
    layers: Iterable[int | None] = () if getattr(model.cfg, "attn_only", False) else range(n_layers)
    return [*(Receiver("mlp", layer if n_layers > 1 else None) for layer in layers), Receiver("logits")]


def _joined(model: HookedModel, probe: Probe) -> EdgeSet:
    """An edge from every sender to every receiver behind it."""
    heads = all_heads(model)
    inputs: tuple[Part, ...] = ("Q", "K", "V")
    receivers = [*(Receiver(part, *head) for head in heads for part in inputs), *_after_heads(model)]
    past_own_mlp = getattr(model.cfg, "parallel_attn_mlp", False)  # the MLP then does not read its own layer's heads

    def is_behind(sender: Head, receiver: Receiver) -> bool:
        if receiver.part == "logits":
            return True
        layer = receiver.layer or 0
        return layer > sender.layer or (layer == sender.layer and receiver.part == "mlp" and not past_own_mlp)

    from_embeddings = (Edge(probe.sender, receiver) for receiver in receivers)
    from_heads = (Edge(head, receiver) for head in heads for receiver in receivers if is_behind(head, receiver))
    return edge_set([*from_embeddings, *from_heads])


def _reaches_answer(model: HookedModel, probe: Probe, edge: Edge) -> bool:
    """Whether what the sender writes can change the logits at the probe's position through this edge."""
    read, part, last = probe.read_position, edge.receiver.part, model.cfg.n_layers - 1
    causal = getattr(model.cfg, "attention_dir", None) == "causal"

    def reaches(position: int) -> bool:
        if part in ("K", "V") or (part != "logits" and (edge.receiver.layer or 0) < last):
            return position <= read or not causal  # attention takes it to the position that is read
        return position == read

    return any(map(reaches, sending_positions(probe, edge)))
