"""Matrix products by oneDNN where PyTorch has it: on some processors it is more than twice as fast as the default.

On a CPU, PyTorch's own float32 products come from MKL, which leaves half of an AMD processor's vector width unused
(110 GFLOP/s instead of 250 on one core of a Zen 5). oneDNN comes with PyTorch too, and uses it on every make.
"""

from typing import Any

import torch
from torch import Tensor


def product(x: Tensor, w: Tensor, plus: Tensor | None = None) -> Tensor:
    """Compute `x @ w + plus` for `x` [n, k], `w` [k, m] and `plus` [n, m]; differentiable."""
    if not _onednn_can(x):
        return x @ w if plus is None else torch.addmm(plus, x, w)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        only: Tensor = _Product.apply(x, w)
        return only if plus is None else only + plus
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(x, w.T, None, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, plus, w.T, None, "add")


def _onednn_can(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and _HAS_ONEDNN


_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""PyTorch's compiler calls oneDNN by this name, from 2.0 on; it is no promise, so without it the default serves."""


class _Product(torch.autograd.Function):
    """oneDNN's product has no gradient in PyTorch; it is two products more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return product(x, w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        needs_x, needs_w = ctx.needs_input_grad
        grad = grads[0].contiguous()  # the gradient of a sum is one number, expanded, which oneDNN takes ages with
        return product(grad, w.T) if needs_x else None, product(x.T, grad) if needs_w else None
