"""What an edge of a model is, seen from what differs between the two runs of a probe, and what edges are called.

A *sender* writes to the residual stream: the embeddings at the positions where recipient and donor differ (called
`Probe.sender`, "trigger" in the backdoor task), or a head. A *receiver* reads it: the query, key or value input of a
head, the input of an MLP, or the unembedding (with the norm before it). An edge joins a sender to a receiver behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from lit_backdoor.functional.heads import Head, head_name

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
