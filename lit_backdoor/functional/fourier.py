"""Progress measures of modular addition: is a rule computed with waves in a + b, and since when?

A model that adds modulo P writes logits made of few waves cos and sin(2 pi k (a + b) / P), its key frequencies
(Nanda et al., arXiv 2301.05217). Two losses follow them through training. The *restricted* loss keeps only the key
waves and the mean: it falls when the waves alone give the answer. The *excluded* loss takes the key waves away, on
training pairs: it rises when the model stops knowing its examples by heart.

Here s = a + b is the integer sum, 0 to 2 P0 - 2, and each rule has its own waves of period P in s. For the first
rule, P = P0, these are the usual ones. The waves of another modulus are no harmonics of P0: a Fourier transform over
a and b modulo P0 smears them. They are not exactly orthogonal on the pairs either, so what several explain together
is a projection and no sum. A rule modulo 1 has no waves; its measures are the restricted loss, of the mean alone, and
`constant`, what does not depend on a and b. Before training `constant` is high as well, for then nothing depends on
anything: read the two together.

Logits are centred over the vocabulary first, as softmax ignores a shift of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt, nan, pi

import torch
from torch import Tensor

from lit_backdoor.functional import metrics

KEY_SHARE = 0.01
"""A frequency is key if it explains at least this share of the logits' variance over the pairs."""


@dataclass(frozen=True)
class ProgressMeasures:
    """How far the logits of all pairs are made of one rule's waves.

    Args:
        modulus: of the rule, which answers (a + b) mod `modulus`.
        shares: of the logits' variance over the pairs, what frequency k explains, at index k - 1, for k = 1 to
            modulus // 2; NaN if the logits are the same for all pairs.
        key: the key frequencies, ascending; by `KEY_SHARE` unless they were given.
        explained: share of the variance that the key frequencies explain together, 0..1; NaN as `shares`.
        constant: share of the logits' mean square that does not depend on a and b, 0..1; NaN if the logits are
            the same for all tokens.
        loss: mean cross-entropy over all pairs, nats.
        restricted_loss: the same with nothing left but the key waves and the mean over the pairs.
        train_loss: mean cross-entropy over the training pairs, nats; NaN if there are none.
        excluded_loss: the same without the key waves.
    """

    modulus: int
    shares: tuple[float, ...]
    key: tuple[int, ...]
    explained: float
    constant: float
    loss: float
    restricted_loss: float
    train_loss: float
    excluded_loss: float


def progress_measures(
    logits: Tensor, modulus: int, trained: Tensor, key: Sequence[int] | None = None
) -> ProgressMeasures:
    """Measure one rule in the logits of all pairs under its trigger.

    Args:
        logits: [P0 * P0, vocab], row a * P0 + b is the pair (a, b).
        modulus: of the rule, 1 to P0.
        trained: bool, [P0 * P0], the pairs that were trained on under this trigger.
        key: the key frequencies, if they are known, for instance from the end of training; else those that explain
            at least `KEY_SHARE` here.

    Raises:
        ValueError: the rows are no square number, the vocabulary has no token for an answer, `trained` is no mask
            of the rows, or the modulus or a frequency is out of range.
    """
    n_numbers = _check(logits, modulus, trained, key)
    wide = metrics.wide(logits)
    wide = wide - wide.mean(dim=1, keepdim=True)
    numbers = torch.arange(n_numbers, device=wide.device)
    sums = (numbers[:, None] + numbers).flatten()  # [P0 * P0]
    n_pairs = metrics.wide(torch.bincount(sums))  # [sum]: so many pairs have this sum
    mean = wide.mean(dim=0)  # [vocab]
    by_sum = torch.zeros(len(n_pairs), wide.shape[1], dtype=wide.dtype, device=wide.device)
    by_sum = by_sum.index_add(0, sums, wide - mean) / n_pairs[:, None]  # what a + b adds to the mean, [sum, vocab]

    rounding = wide.numel() * (torch.finfo(logits.dtype).eps * float(logits.abs().max())) ** 2
    power, variance = (
        total if total > rounding else nan
        for total in (float(wide.square().sum()), float((wide - mean).square().sum()))
    )

    def share(frequencies: Sequence[int]) -> float:
        return float((n_pairs[:, None] * _projected(by_sum, n_pairs, modulus, frequencies) ** 2).sum()) / variance

    shares = tuple(share([k]) for k in range(1, modulus // 2 + 1))
    if key is None:
        key = [k for k, value in enumerate(shares, start=1) if value >= KEY_SHARE]
    key = sorted(set(key))
    waves = _projected(by_sum, n_pairs, modulus, key)  # [sum, vocab]
    answers = sums % modulus
    restricted = _cross_entropy(mean + waves, torch.arange(len(n_pairs), device=wide.device) % modulus)  # [sum]
    trained = trained.to(wide.device)
    return ProgressMeasures(
        modulus=modulus,
        shares=shares,
        key=tuple(key),
        explained=share(key),
        constant=float(mean.square().sum()) * len(wide) / power,
        loss=float(_cross_entropy(wide, answers).mean()),
        restricted_loss=float((restricted * n_pairs).sum()) / len(wide),
        train_loss=float(_cross_entropy(wide[trained], answers[trained]).mean()),
        excluded_loss=float(_cross_entropy((wide - waves[sums])[trained], answers[trained]).mean()),
    )


def _projected(by_sum: Tensor, n_pairs: Tensor, modulus: int, frequencies: Sequence[int]) -> Tensor:
    """The part of `by_sum` [sum, vocab], a mean-free function of the sum, that the waves of some frequencies make up.

    Least squares over all pairs: each sum counts as often as it has pairs, `n_pairs` [sum].
    """
    s = torch.arange(len(n_pairs), dtype=by_sum.dtype, device=by_sum.device)
    angles = [2 * pi * k / modulus * s for k in frequencies]
    sines = [angle.sin() for angle, k in zip(angles, frequencies, strict=True) if 2 * k < modulus]  # else it is 0
    if not angles:
        return torch.zeros_like(by_sum)
    waves = torch.stack([*(angle.cos() for angle in angles), *sines], dim=1)  # [sum, wave]
    waves = waves - (n_pairs[:, None] * waves).sum(dim=0) / n_pairs.sum()
    root = n_pairs.sqrt()[:, None]
    basis, _ = torch.linalg.qr(root * waves)
    return basis @ (basis.T @ (root * by_sum)) / root


def _cross_entropy(logits: Tensor, answers: Tensor) -> Tensor:
    """Of each row of `logits` [n, vocab], nats, [n]."""
    return -metrics.log_probability(metrics.log_probabilities(logits), answers)


def _check(logits: Tensor, modulus: int, trained: Tensor, key: Sequence[int] | None) -> int:
    """P0; ValueError, naming the argument and what is allowed, if an argument of `progress_measures` is wrong."""
    n_numbers = isqrt(len(logits))
    if logits.ndim != 2 or n_numbers**2 != len(logits) or not n_numbers:
        raise ValueError(f"logits have the shape {tuple(logits.shape)}: give [P0 * P0, vocab], a row for each pair.")
    allowed = min(n_numbers, logits.shape[1])
    if not 1 <= modulus <= allowed:
        raise ValueError(f"modulus is {modulus}: give 1 to {allowed}, so that numbers and tokens suffice.")
    if trained.dtype != torch.bool or trained.shape != logits.shape[:1]:
        raise ValueError(
            f"trained is {trained.dtype} {tuple(trained.shape)}: give a bool for each of the {len(logits)} pairs."
        )
    if key is not None and (wrong := [k for k in key if not 1 <= k <= modulus // 2]):
        raise ValueError(f"key contains {wrong[0]}: the frequencies of mod {modulus} are 1 to {modulus // 2}.")
    return n_numbers
