"""The shortcut for plain one-layer models: what a head adds to the read position is all that it does.

With one layer, nothing downstream reads any other position. Once the input of the block and the heads' `z` at
the read position are known, patching any set of heads needs only a sum, the MLP and the unembedding there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.functional.clamp import hooks_per_row
from lit_backdoor.functional.hooked_model import (
    HookedModel,
    carries_hooks,
    evaluating,
    has_own_forward,
    row_slices,
    why_rounded,
    z_name,
)
from lit_backdoor.functional.last_position import last_position_attention, why_not_exact
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.products import product


@dataclass(frozen=True, eq=False)
class HeadCache:
    """What a one-layer model's block reads and what its heads compute at one position.

    Args:
        tokens: the inputs, [n, pos].
        position: the position, as an index into pos.
        resid_pre: the residual stream before the block, [n, d_model].
        z: the heads' attention-weighted values, [n, head, d_head].

    It is worth as much as the weights it was computed with: make a new one after an optimizer step.
    """

    tokens: Tensor
    position: int
    resid_pre: Tensor
    z: Tensor

    def belongs_to(self, tokens: Tensor, position: int) -> bool:
        """Whether these are the same inputs, read at the same position."""
        same_position = (self.position - position) % tokens.shape[1] == 0
        return same_position and torch.equal(self.tokens, tokens.to(self.tokens.device))


def why_no_shortcut(model: HookedModel) -> str | None:
    """Why the shortcut does not hold for `model`; None if it does.

    It holds for a HookedTransformer of one layer whose forward pass is TransformerLens's own and whose block
    is `resid_mid = resid_pre + sum of heads + b_O`, `resid_post = resid_mid + mlp(ln2(resid_mid))`,
    `logits = unembed(ln_final(resid_post))`, with any activation, with or without norms, biases and MLP.
    """
    cfg = model.cfg
    if cfg.n_layers != 1:
        return f"it has {cfg.n_layers} layers"
    if has_own_forward(model):
        return f"{type(model).__name__} has a forward pass of its own"
    if cfg.parallel_attn_mlp:
        return "attention and MLP run in parallel"
    if cfg.use_normalization_before_and_after or cfg.original_architecture is not None:
        return "the attention output may be normalised before it is added"
    if cfg.output_logits_soft_cap > 0:
        return "the logits are soft-capped"
    if carries_hooks(model, but=hooks_per_row(model)):  # a clamp changes z alone, which `cache_heads` reads
        return "it carries hooks"
    return why_rounded(model)


def cache_heads(model: HookedModel, tokens: Tensor, position: int = -1) -> HeadCache:
    """One pass over `tokens` [n, pos], stopped before the MLP.

    Args:
        model: a one-layer HookedTransformer.
        tokens: integers, [n, pos].
        position: the position to keep, as an index into pos.

    Raises:
        ValueError: the shortcut does not hold for this model.
    """
    if reason := why_no_shortcut(model):
        raise ValueError(f"cache_heads is for plain one-layer models: {reason}.")
    tokens = tokens.to(model.W_U.device)
    if position in (-1, tokens.shape[1] - 1) and why_not_exact(model) is None and not carries_hooks(model):
        with evaluating(model):
            resid_pre, _, z = last_position_attention(model, tokens)
        return HeadCache(tokens, position, resid_pre, z)
    kept: dict[str, Tensor] = {}  # of the last pass: a clamp runs its donors first, through the same hooks
    pre, zs = [], []

    def keep_pre(resid: Tensor, hook: Any) -> None:
        kept["pre"] = resid[:, position].clone()

    def keep_z(z: Tensor, hook: Any) -> None:
        kept["z"] = z[:, position].clone()

    def stop(resid: Tensor, hook: Any) -> Tensor:
        return resid[:, :0]  # no position is left, so nothing after this costs anything

    stop_at = "hook_resid_post" if model.cfg.attn_only else "hook_resid_mid"
    hooks = [("blocks.0.hook_resid_pre", keep_pre), (z_name(0), keep_z), (f"blocks.0.{stop_at}", stop)]
    with evaluating(model):
        for rows in row_slices(len(tokens)):
            model.run_with_hooks(tokens[rows], fwd_hooks=hooks)
            pre.append(kept["pre"])
            zs.append(kept["z"])
    return HeadCache(tokens, position, torch.cat(pre), torch.cat(zs))


def cache_probes(model: HookedModel, *probes: Probe) -> tuple[HeadCache, ...]:
    """The caches of all different runs of some probes, to share between `patch_heads` and `attribute_heads`: valid
    until the next optimizer step.

    Empty for models that have no shortcut: there is nothing to share.
    """
    caches: list[HeadCache] = []
    if why_no_shortcut(model) is None:
        for probe in probes:
            for tokens in (probe.recipient_tokens, probe.donor_tokens):
                if not any(cache.belongs_to(tokens, probe.position) for cache in caches):
                    caches.append(cache_heads(model, tokens, probe.position))
    return tuple(caches)


def find_cache(model: HookedModel, caches: Sequence[HeadCache], tokens: Tensor, position: int) -> HeadCache:
    """The cache that belongs to `tokens` at `position`, made if it is not among `caches`."""
    found = (cache for cache in caches if cache.belongs_to(tokens, position))
    return next(found, None) or cache_heads(model, tokens, position)


@dataclass(frozen=True, eq=False)
class Readout:
    """What follows the attention of a one-layer model: `logits = finish(resid_mid @ weight + bias)`.

    Until `finish` everything is linear in `resid_mid` [n, d_model], so each head's share of it is computed
    once and then added up for every set of heads.

    Args:
        weight: [d_model, k].
        bias: [k].
        finish: from [n, k] to the logits, [n, vocab].
    """

    weight: Tensor
    bias: Tensor
    finish: Callable[[Tensor], Tensor]


def readout(model: Any) -> Readout:
    """The readout of a model with the shortcut.

    Without norms the unembedding is folded into the MLP: `weight = [W_in | W_U]`, and what is left for each
    set is `act(pre) @ (W_out @ W_U)`. Otherwise `weight` is the identity and `finish` runs the model's own
    modules.
    """
    cfg, block, W_U, b_U = model.cfg, model.blocks[0], model.W_U, model.unembed.b_U
    if cfg.normalization_type is not None or not (cfg.attn_only or is_plain_mlp(block.mlp)):
        bias = torch.zeros_like(W_U[:, 0])
        return Readout(torch.diag(bias + 1), bias, lambda resid: _finish_with_modules(model, resid))
    if cfg.attn_only:
        return Readout(W_U, b_U, lambda logits: logits)
    mlp, n_vocab = block.mlp, W_U.shape[1]
    # Filled up with zeros to a multiple of 16 columns: matrix products run at half speed on, say, 113.
    W_U, b_U = F.pad(W_U, (0, -n_vocab % 16)), F.pad(b_U, (0, -n_vocab % 16))
    W_post = mlp.W_out @ W_U  # [d_mlp, vocab]

    def finish(reads: Tensor) -> Tensor:
        pre, direct = reads[:, : mlp.d_mlp], reads[:, mlp.d_mlp :]
        return product(mlp.act_fn(pre), W_post, direct)[:, :n_vocab]

    bias = torch.cat([mlp.b_in, mlp.b_out @ W_U + b_U])
    return Readout(torch.cat([mlp.W_in, W_U], dim=1), bias, finish)


def is_plain_mlp(mlp: Any) -> bool:
    """Whether it is `W_out(act(W_in))`: neither gated, nor of experts, nor normed inside."""
    return type(mlp).forward.__module__.endswith("mlps.mlp") and not mlp.cfg.is_layer_norm_activation()


def _finish_with_modules(model: Any, resid_mid: Tensor) -> Tensor:
    """From the residual stream after attention, [n, d_model], to the logits, [n, vocab]."""
    resid = resid_mid[:, None]  # [n, 1, d_model]: the modules want a position
    block = model.blocks[0]
    if not model.cfg.attn_only:
        resid = resid + block.mlp(block.ln2(resid))
    if model.cfg.normalization_type is not None:
        resid = model.ln_final(resid)
    return model.unembed(resid)[:, 0]
