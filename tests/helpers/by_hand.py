"""The same numbers by hand: TransformerLens's own hooks and head results, nothing of this package."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


def patched_logits(model: Any, recipient: Tensor, donor: Tensor, heads: Collection[tuple[int, int]]) -> Tensor:
    """Logits [n, pos, vocab] of `recipient` [n, pos] with the `z` of `heads` taken from `donor` [n, pos]."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, cache = model.run_with_cache(donor)

        def patch(layer: int) -> Any:
            def replace(z: Tensor, hook: Any) -> Tensor:
                z = z.clone()
                for head in (head for of_layer, head in heads if of_layer == layer):
                    z[:, :, head] = cache[names[layer]][:, :, head]
                return z

            return names[layer], replace

        return model.run_with_hooks(recipient, fwd_hooks=[patch(layer) for layer in range(model.cfg.n_layers)])


def patched_accuracy(model: Any, probe: Any, heads: Collection[tuple[int, int]]) -> float:
    """Share of the recipient's answers that are left."""
    logits = patched_logits(model, probe.recipient_tokens, probe.donor_tokens, heads)[:, probe.position]
    return (logits.argmax(-1) == probe.recipient_answers).double().mean().item()


def head_contributions(model: Any, tokens: Tensor, position: int) -> Tensor:
    """What each head writes to the logits, [layer * head, n, vocab], with the final norm's scale frozen."""
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        heads = cache.stack_head_results(pos_slice=position)
        if model.cfg.normalization_type is not None:
            heads = cache.apply_ln_to_stack(heads, layer=-1, pos_slice=position)
        if model.cfg.normalization_type in ("LN", "RMS"):
            heads = heads * model.ln_final.w
        return heads @ model.W_U
