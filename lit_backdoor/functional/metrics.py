"""How well a model answers: accuracy, logit difference, log probability and KL, per example and on average.

Everything is computed in float64. Accuracy is a step function, so the log probability and the logit
difference stand beside it (Zhang & Nanda, arXiv 2309.16042).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """A mean, and the number of examples it is taken over."""

    value: float
    n: int


def wide(values: Tensor) -> Tensor:
    """`values` in float64: where they are, but on the CPU if that is an Apple GPU, which has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def mean(values: Tensor, where: Tensor | None = None) -> Mean:
    """Average `values` [n] over the examples `where` (bool [n], default all); NaN if there are none.

    >>> mean(torch.tensor([1.0, 2.0, 6.0]), where=torch.tensor([True, True, False]))
    Mean(value=1.5, n=2)
    >>> mean(torch.tensor([]))
    Mean(value=nan, n=0)
    """
    selected = values if where is None else values[where.to(values.device)]
    return Mean(float(wide(selected).mean()), selected.numel())


def predictions(logits: Tensor) -> Tensor:
    """Take the token with the largest of `logits` [..., vocab]; [...].

    The lowest token wins a tie. A row that contains NaN has no answer: it gives -1, which no token is.

    >>> predictions(torch.tensor([[0.0, 3.0, 3.0], [0.0, float("nan"), 3.0]])).tolist()
    [1, -1]
    """
    largest, token = logits.max(dim=-1)
    return token.masked_fill(largest.isnan(), -1)


def accuracy(logits: Tensor, answers: Tensor) -> Mean:
    """Count the share of examples whose largest of `logits` [n, vocab] is at `answers` [n].

    >>> accuracy(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    Mean(value=0.5, n=2)
    """
    return mean(predictions(logits) == answers)


def log_probabilities(logits: Tensor) -> Tensor:
    """The natural logarithm of softmax(`logits`) over the vocabulary, float64 [..., vocab]."""
    return wide(logits).log_softmax(dim=-1)


def log_probability(log_probs: Tensor, answers: Tensor) -> Tensor:
    """The log probability, in nats, of `answers` [n] under `log_probs` [..., n, vocab]; [..., n]."""
    return _pick(log_probs, answers)


def logit_difference(logits: Tensor, answers: Tensor, other_answers: Tensor) -> Tensor:
    """Subtract the logit of `other_answers` [n] from that of `answers` [n]; [..., n] from `logits` [..., n, vocab].

    `logits` may be log probabilities as well: the difference is the same. Where the two answers coincide it is
    0 by definition and says nothing: leave those out of means (`mean(..., where=...)`).

    >>> logit_difference(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([1]), torch.tensor([2])).tolist()
    [2.0]
    """
    return _pick(logits, answers) - _pick(logits, other_answers)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, [...], of log probabilities [..., vocab]; never below 0."""
    log_p, log_q = wide(log_p), wide(log_q)
    p = log_p.exp()
    return (torch.linalg.vecdot(p, log_p) - torch.linalg.vecdot(p, log_q)).clamp_min(0)


def _pick(values: Tensor, tokens: Tensor) -> Tensor:
    """`values` [..., n, vocab] at `tokens` [n], float64 [..., n]."""
    index = tokens.long().to(values.device).expand(values.shape[:-1])[..., None]
    return wide(values.gather(-1, index)[..., 0])
