"""Which rule's examples pull at which head, and whether they pull the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import nan
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.functional import metrics
from lit_backdoor.functional.heads import Head, all_heads, head_name
from lit_backdoor.functional.hooked_model import HookedModel, evaluating, row_slices
from lit_backdoor.functional.last_position import SMALLEST_GRADIENT, last_position_logits, why_not_exact

ROWS = 2048
"""Rows whose activations are kept at a time."""


@dataclass(frozen=True)
class HeadGradient:
    """The gradient of the mean loss with respect to one head's parameters, split by rule.

    The loss is a mean over all rows, so the rules' gradients add up to the whole gradient.

    Args:
        head: the head.
        norms: norm of each rule's gradient, by the rule's index.
        shares: each rule's norm over the sum of all norms, 0..1; NaN if all are 0.
        cosines: cosine between the gradients of two rules, -1..1; below 0 they undo each other's work. NaN if one is 0.
    """

    head: Head
    norms: Mapping[int, float]
    shares: Mapping[int, float]
    cosines: Mapping[tuple[int, int], float]


def head_gradients(
    model: HookedModel, tokens: Tensor, answers: Tensor, rules: Tensor, position: int = -1
) -> list[HeadGradient]:
    """Split the gradient of the cross-entropy by rule and by head; one result per head, layer by layer.

    A head's parameters are its slices of W_Q, W_K, W_V and W_O and of b_Q, b_K and b_V, as far as they are trained.
    Weight decay plays no part. The model's own gradients stay as they are.

    Args:
        model: a `HookedModel` whose `blocks[layer].attn` holds these parameters, [head, ...] each, as every
            HookedTransformer does that has a key and a value for each head.
        tokens: [n, pos].
        answers: [n], the token that is right at `position`.
        rules: [n], the index of each row's rule.
        position: where the answer is read, as an index into pos.

    Raises:
        ValueError: the rows are not as many each, or a parameter is missing; the message says which.
    """
    if not len(tokens) == len(answers) == len(rules) or len(tokens) == 0:
        raise ValueError(
            f"tokens, answers and rules have {len(tokens)}, {len(answers)} and {len(rules)} rows: give as many each."
        )
    parameters = _parameters(model)
    tokens, answers, rules = (values.to(model.W_U.device) for values in (tokens, answers, rules))
    indices = rules.unique().tolist()
    with evaluating(model):
        by_rule = [
            _gradient(model, parameters, tokens[rules == i], answers[rules == i], position, len(tokens))
            for i in indices
        ]
    layers = [torch.stack(gradients) for gradients in zip(*by_rule, strict=True)]  # each [rule, head, parameter]
    dots = torch.cat([torch.einsum("rhx,shx->hrs", layer, layer) for layer in layers])  # [layer * head, rule, rule]
    return [_result(head, indices, dots[i]) for i, head in enumerate(all_heads(model))]


def _parameters(model: Any) -> list[list[torch.nn.Parameter]]:
    """Each layer's trained head parameters, [head, ...]; ValueError if they are not there as such."""
    by_layer = []
    for layer in range(model.cfg.n_layers):
        attn, trained = model.blocks[layer].attn, []
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
            parameter = getattr(attn, name, None)
            if not isinstance(parameter, torch.nn.Parameter) or len(parameter) != model.cfg.n_heads:
                raise ValueError(
                    f"blocks.{layer}.attn.{name} of {type(model).__name__} is no parameter of "
                    f"{model.cfg.n_heads} heads: give a HookedTransformer with a key and a value for each head."
                )
            if parameter.requires_grad:
                trained.append(parameter)
        if not trained:
            raise ValueError(f"no parameter of {head_name(layer, 0)} is trained: set requires_grad of at least one.")
        by_layer.append(trained)
    return by_layer


def _gradient(
    model: Any, parameters: list[list[torch.nn.Parameter]], tokens: Tensor, answers: Tensor, position: int, n: int
) -> list[Tensor]:
    """Of the rows' summed cross-entropy over `n`; of each layer, float64 [head, parameter]."""
    flat = [parameter for layer in parameters for parameter in layer]
    total = [metrics.wide(torch.zeros_like(parameter)) for parameter in flat]
    plain = why_not_exact(model) is None and position in (-1, tokens.shape[1] - 1)
    for rows in row_slices(len(tokens), ROWS):
        with torch.enable_grad():
            if plain:
                logits = last_position_logits(model, tokens[rows])
            else:
                logits = model.run_with_hooks(tokens[rows], fwd_hooks=[])[:, position]
            wide = metrics.wide(logits)
            wide.register_hook(lambda grad: F.hardshrink(grad, SMALLEST_GRADIENT))
            loss = F.cross_entropy(wide, answers[rows].long().to(wide.device), reduction="sum") / n
            gradients = torch.autograd.grad(loss, flat)
        for sum_so_far, gradient in zip(total, gradients, strict=True):
            sum_so_far += metrics.wide(gradient)
    of_flat = iter(total)
    return [torch.cat([next(of_flat).flatten(1) for _ in layer], dim=1) for layer in parameters]


def _result(head: Head, rules: list[int], dots: Tensor) -> HeadGradient:
    """From the scalar products [rule, rule] of the rules' gradients on one head."""
    norms = dict(zip(rules, dots.diagonal().sqrt().tolist(), strict=True))
    total = sum(norms.values())
    cosines = {}
    for (i, rule), (j, other) in combinations(enumerate(rules), 2):
        scale = norms[rule] * norms[other]
        cosines[rule, other] = min(max(float(dots[i, j]) / scale, -1.0), 1.0) if scale > 0 else nan
    shares = {rule: norm / total if total > 0 else nan for rule, norm in norms.items()}
    return HeadGradient(head, norms, shares, cosines)
