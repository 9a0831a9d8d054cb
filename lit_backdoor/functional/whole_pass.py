"""Logits and loss at the last position through the whole HookedTransformer, block by block of rows on threads.

For models that have no exact last-position form (:mod:`lit_backdoor.functional.last_position`). Rows do not depend on
one another, so their logits can be computed apart, and the gradients of their losses added up in order: the number of
threads changes no bit.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.functional.last_position import SMALLEST_GRADIENT
from lit_backdoor.functional.row_threads import map_blocks, row_blocks


def whole_pass_logits(model: Any, tokens: Tensor) -> Tensor:
    """``model(tokens)[:, -1]`` [n, d_vocab_out] for ``tokens`` [n, pos]; differentiable."""
    if torch.is_grad_enabled() or not _rows_apart(model, tokens):
        return model(tokens)[:, -1]
    return torch.cat(map_blocks(lambda rows: model(tokens[rows])[:, -1], row_blocks(len(tokens))))


def whole_pass_loss(model: Any, tokens: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy at the last position, in float64.

    Args:
        model: a HookedTransformer.
        tokens: [n, pos].
        answers: [n], the token that is right at the last position.

    Returns:
        The loss (a scalar through which ``backward`` reaches the model's parameters) and the logits [n, d_vocab_out]
        (detached).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if _rows_apart(model, tokens):
        return _WholePassLoss.apply(model, tokens, answers, *trained)
    loss, logits = _summed_loss(model, tokens, answers)
    return loss / len(tokens), logits


def _rows_apart(model: Any, tokens: Tensor) -> bool:
    """Whether rows are computed apart: not on a GPU, nor with hooks (they may mix rows), nor under autocast (which is
    a setting of this thread)."""
    hooked = any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())
    return tokens.device.type == "cpu" and not hooked and not torch.is_autocast_enabled("cpu")


def _summed_loss(model: Any, tokens: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy, and the logits [n, d_vocab_out], detached."""
    logits = model(tokens)[:, -1]
    wide = logits.double()
    if wide.requires_grad:
        wide.register_hook(lambda grad: F.hardshrink(grad, SMALLEST_GRADIENT))
    return F.cross_entropy(wide, answers, reduction="sum"), logits.detach()


class _WholePassLoss(torch.autograd.Function):
    """Loss and logits of all rows, and the gradients of the trained parameters."""

    @staticmethod
    def forward(ctx: Any, model: Any, tokens: Tensor, answers: Tensor, *trained: Tensor) -> tuple[Tensor, Tensor]:
        def run(rows: slice) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
            with torch.enable_grad():
                loss, logits = _summed_loss(model, tokens[rows], answers[rows])
                return loss.detach(), logits, torch.autograd.grad(loss, trained)

        losses, logits, gradients = zip(*map_blocks(run, row_blocks(len(tokens))), strict=True)
        ctx.save_for_backward(*(torch.stack(parts).sum(0) for parts in zip(*gradients, strict=True)))
        ctx.n = len(tokens)
        all_logits = torch.cat(logits)
        ctx.mark_non_differentiable(all_logits)
        ctx.set_materialize_grads(False)
        return torch.stack(losses).sum() / len(tokens), all_logits

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0] / ctx.n
        return (None,) * 3 + tuple(gradient * scale.to(gradient.dtype) for gradient in ctx.saved_tensors)
