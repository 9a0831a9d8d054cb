"""Which edges can carry what differs between a probe's two runs to the answer, and which sets of them to patch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lit_backdoor.functional.edges import Edge, EdgeGroup, EdgeSet, Part, Receiver, edge_name, edge_set
from lit_backdoor.functional.heads import Head, all_heads, head_name
from lit_backdoor.functional.hooked_model import HookedModel
from lit_backdoor.functional.probe import Probe


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
