"""What replaces the activations of patched heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from lit_backdoor.functional.hooked_model import row_slices
from lit_backdoor.functional.results import Ablation

ReadZ = Callable[[slice], list[Tensor]]
"""Rows of the probe to every layer's `z`, each [rows, pos, head, d_head] or, the same for all rows, [1, ...]."""


def check_ablation(ablation: str) -> None:
    """Raise ValueError unless `ablation` is an `Ablation`."""
    if ablation not in get_args(Ablation):
        raise ValueError(f"ablation is {ablation!r}: choose one of {', '.join(get_args(Ablation))}.")


def replacement(donor_z: ReadZ, n: int, ablation: Ablation, rows_at_once: int = 512) -> ReadZ:
    """The donor's `z` to what replaces the recipient's; the donor has `n` rows."""
    if ablation == "resample":
        return donor_z
    if ablation == "zero":
        same = [torch.zeros_like(z) for z in donor_z(slice(0, 1))]
    else:
        sums = [[z.sum(dim=0, keepdim=True) for z in donor_z(rows)] for rows in row_slices(n, rows_at_once)]
        same = [sum(layer) / n for layer in zip(*sums, strict=True)]
    return lambda rows: same
