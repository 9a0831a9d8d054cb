"""Path patching of any hooked model: one run of the recipient for each set of edges, with what receivers read changed.

A receiver's input is changed and nothing before it, so whatever lies between sender and receiver stays as it was: the
effect is that of the direct path alone, as in TransformerLens's path patching, where all that lies between is frozen.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lit_backdoor.functional.edge_sets import sending_positions
from lit_backdoor.functional.edges import Edge, EdgesEngine, EdgeSet, Receiver
from lit_backdoor.functional.heads import Head
from lit_backdoor.functional.hooked_model import HookedModel, z_name
from lit_backdoor.functional.one_layer_paths import is_plain
from lit_backdoor.functional.probe import Probe

EMBED = "blocks.0.hook_resid_pre"
"""The hook on the embeddings, token and position together, [n, pos, d_model]."""

Hook = tuple[str, Callable[..., Any]]


def hooked_engine(model: HookedModel, probe: Probe, edge_sets: Iterable[EdgeSet]) -> EdgesEngine:
    """The engine for `edge_sets` and no others.

    Args:
        model: any, with the hook points that the edges need.
        probe: on the model's device.
        edge_sets: sets of edges that the model has.

    Raises:
        ValueError: the model lacks a hook point, or what its heads write is normalised; the message names the fix.
    """
    used = {edge for edges in edge_sets for edge in edges}
    _check_hooks(model, probe, used)
    names, W_O = sorted({_sender_hook(edge) for edge in used}), model.W_O

    def engine(rows: slice) -> Callable[[EdgeSet], Tensor]:
        donor = model.run_with_cache(probe.donor_tokens[rows], names_filter=names)[1] if names else {}

        def patched(edges: EdgeSet) -> Tensor:
            now: dict[str, Tensor] = {}  # what the senders write in this very run

            @functools.cache
            def change(sender: Head | str, positions: frozenset[int]) -> Tensor:
                """What the donor's sender adds to the residual stream, [rows, pos, d_model]."""
                name = EMBED if isinstance(sender, str) else z_name(sender.layer)
                difference = donor[name] - now[name]
                if not isinstance(sender, str):
                    difference = difference[:, :, sender.head] @ W_O[sender.layer, sender.head]
                sends = torch.zeros_like(difference[0, :, :1])
                sends[sorted(positions)] = 1
                return difference * sends

            def keep(name: str) -> Hook:
                def hook(activation: Tensor, hook: Any) -> None:
                    now[name] = activation.clone()

                return name, hook

            def receive(name: str) -> Hook:
                def hook(activation: Tensor, hook: Any) -> Tensor:  # [rows, pos, d_model] or [rows, pos, head, d_model]
                    activation = activation.clone()
                    for (sender, receiver), positions in sent.items():
                        if _receiver_hook(model, receiver) == name:
                            own = activation if receiver.head is None else activation[:, :, receiver.head]
                            own += change(sender, frozenset(positions))
                    return activation

                return name, hook

            sent: defaultdict[tuple[Head | str, Receiver], set[int]] = defaultdict(set)  # the positions
            for edge in edges:
                sent[edge.sender, edge.receiver].update(sending_positions(probe, edge))
            hooks = [keep(name) for name in sorted({_sender_hook(edge) for edge in edges})]
            hooks += [receive(name) for name in {_receiver_hook(model, edge.receiver): None for edge in edges}]
            return model.run_with_hooks(probe.recipient_tokens[rows], fwd_hooks=hooks)[:, probe.position]

        return patched

    return engine


@contextmanager
def with_all_inputs_hooked(model: Any) -> Iterator[None]:
    """Switch on the hook points that edges need, as far as the model can, and leave it as it was.

    It computes the same function meanwhile, with rounding of its own. A plain one-layer model needs none.
    """
    off = [name for name in ("use_split_qkv_input", "use_hook_mlp_in") if getattr(model.cfg, name, None) is False]
    setters = [
        getattr(model, f"set_{name}", None) for name in off if not (name.endswith("mlp_in") and model.cfg.attn_only)
    ]
    switches = [] if is_plain(model) else [setter for setter in setters if setter is not None]
    try:
        for switch in switches:
            switch(True)
        yield
    finally:
        for switch in switches:
            switch(False)


def _sender_hook(edge: Edge) -> str:
    return EMBED if isinstance(edge.sender, str) else z_name(edge.sender.layer)


def _receiver_hook(model: HookedModel, receiver: Receiver) -> str:
    part, layer, head = receiver
    if part == "logits":
        return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    return f"blocks.{layer or 0}.hook_{'mlp_in' if head is None else f'{part.lower()}_input'}"


_FIXES = {
    "_input": "call model.set_use_split_qkv_input(True)",
    "mlp_in": "call model.set_use_hook_mlp_in(True)",
    "": "it must be there as in TransformerLens",
}
"""How a hook point's name ends, and what makes it fire."""

_GROUPED = "with grouped keys and values call model.set_ungroup_grouped_query_attention(True)"


def _check_hooks(model: HookedModel, probe: Probe, edges: Iterable[Edge]) -> None:
    """Run one example of each run; ValueError unless all hook points fire, with the right shapes, and heads add up."""
    tokens = torch.cat([probe.recipient_tokens[:1], probe.donor_tokens[:1]])
    _, n_heads, d_head, d_model = model.W_O.shape
    sizes: dict[str, tuple[int, ...]] = {}
    for edge in edges:
        sizes[_sender_hook(edge)] = (d_model,) if isinstance(edge.sender, str) else (n_heads, d_head)
        sizes[_receiver_hook(model, edge.receiver)] = (d_model,) if edge.receiver.head is None else (n_heads, d_model)
    problems = []
    for ending, fix in _FIXES.items():
        names = [name for name in sizes if name.endswith(ending)]
        shapes = {name: tuple(value.shape) for name, value in _activations(model, tokens, names).items()}
        for name, expected in {name: (*tokens.shape, *sizes.pop(name)) for name in names}.items():
            if name not in shapes:
                problems.append(f"{name} does not fire: {fix}")
                break
            if shapes[name] != expected:
                problems.append(f"{name} has the shape {shapes[name]}, not {expected}: {_GROUPED}")
                break
    if problems:
        raise ValueError(f"{type(model).__name__} cannot be patched along paths. {'; '.join(problems)}.")
    for layer in {edge.sender.layer for edge in edges if not isinstance(edge.sender, str)}:
        _check_heads_add_up(model, tokens, layer)


def _check_heads_add_up(model: HookedModel, tokens: Tensor, layer: int) -> None:
    """ValueError if what the heads write is not what the layer's attention adds to the residual stream, but for biases.

    A model without the hook point on the latter is taken at its word.
    """
    attn_out = f"blocks.{layer}.hook_attn_out"
    values = _activations(model, tokens, [z_name(layer), attn_out])
    if attn_out not in values:
        return
    z_change, out_change = (values[name][1] - values[name][0] for name in (z_name(layer), attn_out))
    error = (torch.einsum("phd,hdm->pm", z_change, model.W_O[layer]) - out_change).abs().max()
    if error > max(1e-3, 4 * torch.finfo(error.dtype).eps) * values[attn_out].abs().max():
        raise ValueError(
            f"{type(model).__name__}: what the heads of layer {layer} write is not added as it is, maybe normalised "
            "first, so no edge can start at them: ask for edges from the embeddings, or patch the heads."
        )


def _activations(model: HookedModel, tokens: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Of the hook points `names`, those that fire; {} if the model refuses to hook one of them."""
    values: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        return name, lambda activation, hook: values.__setitem__(name, activation)

    try:
        model.run_with_hooks(tokens, fwd_hooks=[keep(name) for name in names])
    except (KeyError, AssertionError, ValueError):  # as HookedTransformer and TransformerBridge do
        return {}
    return values
