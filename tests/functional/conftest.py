from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer

from lit_backdoor.functional import Probe

from .tiny import ANSWER, VOCAB


@pytest.fixture
def backdoor_probe() -> Probe:
    """All (a, b): triggered inputs as recipient, benign ones as donor."""
    a, b = (grid.flatten() for grid in torch.meshgrid(torch.arange(VOCAB), torch.arange(VOCAB), indexing="ij"))
    triggered, benign = (torch.stack([a, b, torch.full_like(a, t)], dim=1) for t in (1, 0))
    return Probe(triggered, benign, torch.full_like(a, ANSWER), a, recipient="backdoor", donor="benign")


@pytest.fixture
def untouched() -> Callable[[HookedTransformer], Callable[[], None]]:
    """`check = untouched(model)`, use the model, `check()`: weights, modes, hooks, gradients, random state as
    before."""

    def snapshot(model: HookedTransformer) -> tuple[Any, ...]:
        return (
            [parameter.clone() for parameter in model.parameters()],
            [parameter.grad for parameter in model.parameters()],
            [module.training for module in model.modules()],
            [len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values()],
            torch.is_grad_enabled(),
            torch.get_rng_state(),
        )

    def start(model: HookedTransformer) -> Callable[[], None]:
        before = snapshot(model)

        def check() -> None:
            torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)

        return check

    return start
