"""Where the heads look."""

import torch
from torch import Tensor

from lit_backdoor.functional.hooked import HookedModel, evaluating, row_slices


def mean_attention(model: HookedModel, tokens: Tensor, position: int = -1) -> Tensor:
    """Attention from one position, after the softmax, mean over the examples.

    Args:
        model: any `HookedModel` that has the hook points `blocks.{layer}.attn.hook_pattern`.
        tokens: [n, pos].
        position: the position that attends, as an index into pos.

    Returns:
        [layer, head, pos], 0..1; sums to 1 over pos.

    Raises:
        KeyError: the model has no such hook point.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    total = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, tokens.shape[1], device=model.W_U.device)
    with evaluating(model):
        for rows in row_slices(len(tokens)):
            _, cache = model.run_with_cache(tokens[rows].to(model.W_U.device), names_filter=names)
            total += torch.stack([cache[name][:, :, position].sum(0) for name in names])
    return total / len(tokens)
