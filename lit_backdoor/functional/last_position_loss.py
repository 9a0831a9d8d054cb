"""The training loss from the last-position form, with its gradients computed on the way, block by block of rows.

Faster than autograd over :func:`lit_backdoor.functional.last_position.last_position_logits`, with the same numbers up
to rounding: the activations of a block stay in the processor's cache, none is kept for the whole batch, and the
threads that the blocks are spread over meet only once. The gradients of the blocks are summed in order, so the number
of threads changes no bit.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.functional.last_position import (
    SMALLEST_GRADIENT,
    FoldedModel,
    attend,
    fold,
    folded_logits,
)
from lit_backdoor.functional.products import product
from lit_backdoor.functional.row_threads import map_blocks
from lit_backdoor.functional.token_layout import RowBlock, TokenLayout


def last_position_loss(model: Any, layout: TokenLayout, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy at the last position, in float64.

    Args:
        model: one for which :func:`lit_backdoor.functional.last_position.why_not_exact` is ``None``.
        layout: of the examples' tokens; worth keeping from step to step.
        answers: [n], the token that is right at the last position.

    Returns:
        The loss (a scalar through which ``backward`` reaches the model's parameters) and the logits [n, d_vocab_out]
        (detached).
    """
    folded = fold(model, layout)
    if answers.device.type == "cpu":
        return _LastPositionLoss.apply(layout, answers, model.blocks[0].mlp.act_fn, *folded)
    logits = folded_logits(model, folded, layout)
    return F.cross_entropy(logits.double(), answers), logits.detach()


class _LastPositionLoss(torch.autograd.Function):
    """Loss and logits from the tables of a :class:`FoldedModel`, and the gradients with respect to them."""

    @staticmethod
    def forward(ctx: Any, layout: TokenLayout, answers: Tensor, act_fn: Any, *tables: Tensor) -> tuple[Tensor, Tensor]:
        folded = FoldedModel(*tables)
        logits = folded.logits.new_empty(len(answers), folded.logits.shape[1])

        def run(block: RowBlock) -> tuple[Tensor, FoldedModel]:
            return _block(folded, block, answers[block.rows, None], act_fn, logits[block.rows])

        results = map_blocks(run, layout.blocks)
        loss = torch.stack([loss for loss, _ in results]).sum() / len(answers)
        gradients = [functools.reduce(torch.Tensor.add_, parts) for parts in zip(*(g for _, g in results), strict=True)]
        ctx.save_for_backward(*gradients)
        ctx.n = len(answers)
        ctx.mark_non_differentiable(logits)
        ctx.set_materialize_grads(False)
        return loss, logits

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0] / ctx.n
        return (None,) * 3 + tuple(grad * scale.to(grad.dtype) for grad in ctx.saved_tensors)


def _block(
    folded: FoldedModel, block: RowBlock, answers: Tensor, act_fn: Any, logits: Tensor
) -> tuple[Tensor, FoldedModel]:
    """Summed loss of a block's c rows, and its gradients; ``logits`` [c, d_vocab_out] are filled in."""
    n_heads = block.layout.n_heads
    # forward: attention, MLP and unembedding
    pattern, z = attend(folded.scores, folded.values, block)
    post, pull_back = _act_(act_fn, product(z, folded.z_to_pre, folded.pre.index_select(0, block.last)))
    direct = product(z, folded.z_to_logits, folded.logits.index_select(0, block.last))
    logits.copy_(product(post, folded.post_to_logits, direct))
    # forward and backward: cross-entropy; d loss / d logits = softmax - one-hot
    probs = logits.to(torch.float64, copy=True)
    probs -= probs.amax(1, keepdim=True)
    of_answer = probs.gather(1, answers)
    total = probs.exp_().sum(1, keepdim=True)
    loss = (total.log() - of_answer).sum()
    probs /= total
    F.threshold(probs, SMALLEST_GRADIENT, 0.0, inplace=True)
    grad_logits = probs.scatter_add_(1, answers, torch.full_like(of_answer, -1.0)).to(logits.dtype)
    # backward: MLP and unembedding
    grad_pre = pull_back(product(grad_logits, folded.post_to_logits.T))
    grad_z = product(grad_pre, folded.z_to_pre.T, product(grad_logits, folded.z_to_logits.T))
    # backward: attention
    grad_z_by_head = grad_z.view(len(z) * n_heads, -1)  # [c * head, d_head]
    values = folded.values.view(-1, grad_z_by_head.shape[1]).index_select(0, block.values.flatten())
    grad_pattern = values.view(*pattern.shape, -1).mul_(grad_z_by_head).sum(-1)
    grad_scores = pattern * (grad_pattern - (grad_pattern * pattern).sum(0))
    grads = FoldedModel(
        pre=block.by_last.sum(grad_pre),
        logits=block.by_last.sum(grad_logits),
        scores=torch.zeros_like(folded.scores).flatten().index_add_(0, block.scores.flatten(), grad_scores.flatten()),
        values=block.by_value.sum(grad_z_by_head, pattern.flatten()),
        z_to_pre=product(z.T, grad_pre),
        z_to_logits=product(z.T, grad_logits),
        post_to_logits=product(grad_logits.T, post).T,
    )
    return loss, FoldedModel(*(grad.view_as(table) for grad, table in zip(grads, folded, strict=True)))


def _act_(act_fn: Any, pre: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """``act_fn(pre)`` (in place for ReLU), and the function that pulls a gradient back through it (in place too)."""
    if act_fn is F.relu:
        post = pre.relu_()
        return post, lambda grad: torch.ops.aten.threshold_backward.grad_input(grad, post, 0, grad_input=grad)
    with torch.enable_grad():
        leaf = pre.requires_grad_()
        output = act_fn(leaf)
    return output.detach(), lambda grad: torch.autograd.grad(output, leaf, grad)[0]
