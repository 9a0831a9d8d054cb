"""Patching a HookedTransformer layer by layer: passes share whatever is the same in them.

Up to the first layer in which two sets of heads differ, their passes are the same. So the sets form a tree: its root is
the unpatched pass, and its nodes after a layer are the different choices of heads up to there. Each layer runs once, on
the residual streams of all nodes before it, stacked along the batch. At `hook_z` the nodes part: each takes its
parent's `z` with its own heads replaced, and goes its own way through the rest of the layer.

None, each head alone, all but one, and all heads of four layers of eight are 66 whole passes. As a tree they are
1 + 18 + 34 + 50 passes through a layer's attention, and 18 + 34 + 50 through its MLP, with 66 single positions in the
last layer: there only the position that is read goes further than the attention scores.

In a causal model no position after that one is computed, and those before the first one in which recipient and donor
differ only once, for all nodes and for the donor too (unless the ablation makes them differ).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.functional.ablation import replacement
from lit_backdoor.functional.heads import HeadSet
from lit_backdoor.functional.hooked_model import HookedModel, carries_hooks, why_rounded, z_name
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import Ablation

TOKENS_AT_ONCE = 8192
"""Sets times rows times positions that go through a layer at a time."""


def not_layer_by_layer(model: HookedModel) -> str | None:
    """Why `model` can't be patched layer by layer; None if it can.

    It can if it is a HookedTransformer without hooks, made of TransformerLens's and PyTorch's own modules, and only
    `resid_mid = resid_pre + z @ W_O + b_O` comes between `hook_z` and the MLP.
    """
    if type(model).__module__ != "transformer_lens.HookedTransformer":
        return f"{type(model).__name__} is no HookedTransformer"
    cfg, blocks, tokenizer = model.cfg, model.blocks, model.tokenizer  # type: ignore[attr-defined]
    for module in model.modules():  # type: ignore[attr-defined]
        if "forward" in vars(module) or not type(module).__module__.startswith(("transformer_lens.", "torch.nn.")):
            return f"its {type(module).__name__} is no module of TransformerLens"
    kinds = {(type(block).__name__, type(getattr(block, "attn", None)).__name__) for block in blocks}
    if not kinds <= {("TransformerBlock", attention) for attention in ("Attention", "GroupedQueryAttention")}:
        return "it has blocks or an attention of its own"
    if cfg.parallel_attn_mlp:
        return "attention and MLP run in parallel"
    if cfg.use_normalization_before_and_after or cfg.original_architecture is not None:
        return "the attention output may be normalised before it is added"
    if cfg.load_in_4bit:
        return "its weights have 4 bits"
    if cfg.positional_embedding_type == "shortformer" or cfg.use_dynamic_ntk_rope:
        return "what a position is depends on more than the residual stream"
    if tokenizer is not None and tokenizer.padding_side == "left":
        return "its tokenizer pads on the left"
    if carries_hooks(model):
        return "it carries hooks"
    return why_rounded(model)


class LayerByLayer:
    """The engine: call `logits` inside `hooked`.

    Args:
        model: a HookedTransformer for which `not_layer_by_layer` is None.
        probe: the examples, on the model's device.
        sets: the sets of heads, all different.
        ablation: what replaces the heads' `z`.
    """

    def __init__(self, model: Any, probe: Probe, sets: Sequence[HeadSet], ablation: Ablation) -> None:
        self.probe, self.ablation = probe, ablation
        n_pos = probe.recipient_tokens.shape[1]
        position = probe.position % n_pos
        causal = model.cfg.attention_dir == "causal"
        self.n_pos = position + 1 if causal else n_pos
        self.n_shared = _first_difference(probe, position) if causal and ablation == "resample" else 0
        n_own = self.n_pos - self.n_shared + self.n_shared // 4  # of a shared one, only keys and values are copied
        self.rows_at_once = max(TOKENS_AT_ONCE // (n_own * len(sets)), 1)
        sets_at_once = max(TOKENS_AT_ONCE // (n_own * self.rows_at_once), 1)
        self._trees = [_tree(sets[i : i + sets_at_once], model) for i in range(0, len(sets), sets_at_once)]
        self._layers = _Layers(model, position - self.n_shared)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The hooks, on the model; several threads may call `logits` meanwhile."""
        with self._layers.hooked():
            self._given = replacement(self._donor_z, self.probe.n_examples, self.ablation)
            yield

    def logits(self, rows: slice) -> Tensor:
        """The logits at the probe's position, [set, rows, vocab]."""
        embed = self._layers.begin(self.probe.recipient_tokens[rows, : self.n_pos], self.n_shared)
        given, logits = self._given(rows), []
        for tree in self._trees:
            resid = embed
            for layer, fork in enumerate(tree):
                resid = self._layers.run(layer, resid, (fork, given[layer]))
            logits.append(resid.unflatten(0, (-1, len(embed))))
        return torch.cat(logits)[:, :, 0]

    def _donor_z(self, rows: slice) -> list[Tensor]:
        """Every layer's `z`, [rows, pos, head, d_head]; in the last layer pos is 1, the position that is read."""
        resid = self._layers.embed(self.probe.donor_tokens[rows, : self.n_pos])[:, self.n_shared :]
        zs = []
        for layer in range(self._layers.n):
            resid = self._layers.run(layer, resid)
            zs.append(self._layers.z)
        return zs


def _first_difference(probe: Probe, position: int) -> int:
    """So many positions come before the first in which recipient and donor differ in any row; at most `position`."""
    same = (probe.recipient_tokens == probe.donor_tokens).all(dim=0)[:position]
    return int(same.long().cumprod(dim=0).sum())


class _Fork(NamedTuple):
    """How the nodes after a layer come from those before it.

    Args:
        n_parents: the number of nodes before the layer.
        parents: each node's parent, an index into them, [node].
        patched: each node's patched heads in this layer, bool [node, head].
    """

    n_parents: int
    parents: Tensor
    patched: Tensor


def _tree(sets: Sequence[HeadSet], model: Any) -> list[_Fork]:
    """The tree of `sets`, one fork per layer; the nodes after the last layer are `sets` in their order."""
    n_layers, n_heads, device = model.cfg.n_layers, model.cfg.n_heads, model.W_U.device
    paths = [tuple(tuple(head.head for head in heads if head.layer == i) for i in range(n_layers)) for heads in sets]
    tree: list[_Fork] = []
    before: dict[tuple[tuple[int, ...], ...], int] = {(): 0}
    for layer in range(n_layers):
        nodes = list(dict.fromkeys(path[: layer + 1] for path in paths))
        parents = torch.tensor([before[path[:layer]] for path in nodes], device=device)
        patched = torch.tensor([[head in path[layer] for head in range(n_heads)] for path in nodes], device=device)
        tree.append(_Fork(len(before), parents, patched))
        before = {path: node for node, path in enumerate(nodes)}
    return tree


class _Past:
    """A layer's keys and values at the shared positions, in the form in which TransformerLens's attention takes them.

    The first `append`, of [rows, pos, head, d_head], keeps them; later ones, of [node * rows, pos, head, d_head], put
    them in front.
    """

    def __init__(self) -> None:
        self.past_keys = self.past_values = torch.empty(0, 0)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions so far."""
        if len(self.past_keys) == 0:
            self.past_keys, self.past_values = keys, values
            return keys, values
        n_nodes = len(keys) // len(self.past_keys)
        past_keys, past_values = (past.repeat(n_nodes, 1, 1, 1) for past in (self.past_keys, self.past_values))
        return torch.cat([past_keys, keys], dim=1), torch.cat([past_values, values], dim=1)


class _Layers(threading.local):
    """A model's layers, run one at a time by hooks that are on the model once; what they know is each thread's own.

    Args:
        model: the HookedTransformer.
        read: the position that is read, as an index into those that are run.
    """

    def __init__(self, model: Any, read: int) -> None:
        self.model, self.n, self.read = model, model.cfg.n_layers, slice(read, read + 1)
        self.running = False
        self.past: list[_Past] | None = None
        self.patch: tuple[_Fork, Tensor] | None = None
        self.resid = self.z = torch.empty(0)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The hooks that `run` needs; they do nothing in other passes."""
        after_attention = "hook_resid_post" if self.model.cfg.attn_only else "hook_resid_mid"
        hooks: list[tuple[str, Any]] = [(f"blocks.{self.n - 1}.attn.hook_attn_scores", self._read_only)]
        for layer in range(self.n):
            hooks += [(z_name(layer), self._keep_z), (f"blocks.{layer}.{after_attention}", self._part)]
        with self.model.hooks(fwd_hooks=hooks):
            yield

    def embed(self, tokens: Tensor) -> Tensor:
        """The residual streams before the first layer, [rows, pos, d_model]."""
        return self.model.forward(tokens, stop_at_layer=0)

    def begin(self, tokens: Tensor, n_shared: int) -> Tensor:
        """Keep the keys and values of the first `n_shared` positions for `run`, and embed the others."""
        embed, self.past = self.embed(tokens), None
        if n_shared:
            self.past = [_Past() for _ in range(self.n)]
            self.model.forward(embed[:, :n_shared], start_at_layer=0, stop_at_layer=self.n, past_kv_cache=self.past)
        return embed[:, n_shared:]

    def run(self, layer: int, resid: Tensor, patch: tuple[_Fork, Tensor] | None = None) -> Tensor:
        """Run one layer on all nodes before it.

        Args:
            layer: its number.
            resid: the residual streams before it, [parent * rows, pos, d_model].
            patch: the nodes after it, and what replaces the `z` of patched heads, [rows or 1, pos, head, d_head]; None
                to patch nothing: one node, of which nothing but its `z` is wanted.

        Returns:
            The residual streams after it, [node * rows, pos, d_model]; after the last layer, if patched, the logits,
            [node * rows, 1, vocab].
        """
        self.resid, self.patch, self.running = resid, patch, True
        stop = None if patch and layer == self.n - 1 else layer + 1
        try:  # like run_with_hooks, past __call__, which may be compiled
            return self.model.forward(resid, start_at_layer=layer, stop_at_layer=stop, past_kv_cache=self.past)
        finally:
            self.running = False

    def _read_only(self, scores: Tensor, hook: Any) -> Tensor | None:
        """In the last layer, the scores [parent * rows, head, query, key] of the position that is read."""
        return scores[:, :, self.read] if self.running else None

    def _keep_z(self, z: Tensor, hook: Any) -> Tensor | None:
        """Keep `z`; where it is patched, one position is enough to go on with, as `_part` replaces what comes of it."""
        if not self.running:
            return None
        self.z = z
        return z[:, :1] if self.patch else None

    def _part(self, resid: Tensor, hook: Any) -> Tensor | None:
        """The residual stream after attention of every node after the layer, [node * rows, pos, d_model]."""
        if not self.running:
            return None
        last = hook.layer() == self.n - 1
        if self.patch is None:
            return resid[:, :1] if last else None  # nothing reads what the last layer makes of it
        (n_parents, parents, patched), given = self.patch
        before = self.resid[:, self.read] if last else self.resid
        own, before = (x.unflatten(0, (n_parents, -1))[parents] for x in (self.z, before))
        z = torch.where(patched[:, None, None, :, None], given, own)  # [node, rows, pos, head, d_head]
        attn = self.model.blocks[hook.layer()].attn
        attn_out = F.linear(z.flatten(-2).to(attn.W_O.dtype), attn.W_O.flatten(0, 1).T, attn.b_O)
        return (before + attn_out).flatten(0, 1)
