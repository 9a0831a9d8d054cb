from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lit_backdoor.functional import (
    accuracy,
    kl_divergence,
    log_probabilities,
    log_probability,
    logit_difference,
    mean,
    predictions,
)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0)) * 3


def test_predictions_ties_and_nan() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0], [2.0, 2.0, 2.0], [math.nan, 1.0, 0.0], [1.0, 0.0, math.nan]])
    assert predictions(logits).tolist() == [1, 0, -1, -1]


def test_a_diverged_model_is_not_right_by_accident() -> None:
    """The largest of NaNs is at 0, which is the answer of the mod 1 backdoor."""
    assert accuracy(torch.full((5, 3), math.nan), torch.zeros(5, dtype=torch.long)) == (0.0, 5)


def test_accuracy_counts() -> None:
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 3, 3])) == (0.75, 4)


def test_log_probability_is_minus_the_cross_entropy(logits: torch.Tensor) -> None:
    answers = torch.arange(50) % 7
    ours = log_probability(log_probabilities(logits[0]), answers)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, -F.cross_entropy(logits[0].double(), answers, reduction="none"))


def test_float64_keeps_what_float32_loses() -> None:
    sure = log_probability(log_probabilities(torch.tensor([[30.0, 0.0]])), torch.tensor([0]))
    torch.testing.assert_close(sure.item(), -math.exp(-30), rtol=2e-3, atol=0)


def test_logit_difference_is_the_same_for_log_probabilities(logits: torch.Tensor) -> None:
    a, b = torch.arange(50) % 7, torch.arange(50) % 5
    expected = logits[0][torch.arange(50), a].double() - logits[0][torch.arange(50), b].double()
    torch.testing.assert_close(logit_difference(logits[0], a, b), expected)
    torch.testing.assert_close(logit_difference(log_probabilities(logits[0]), a, b), expected)


def test_kl(logits: torch.Tensor) -> None:
    log_p, log_q = log_probabilities(logits)
    expected = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)  # KL(p || q)
    torch.testing.assert_close(kl_divergence(log_p, log_q), expected)
    assert kl_divergence(log_p, log_p).tolist() == [0.0] * 50
    assert (kl_divergence(log_p, log_q) > 0).all()


def test_mean_says_over_how_many() -> None:
    values = torch.tensor([1.0, 3.0, math.nan])
    assert mean(values[:2]) == (2.0, 2)
    assert mean(values, where=torch.tensor([True, False, False])) == (1.0, 1)
    assert math.isnan(mean(values).value)
    nothing = mean(values, where=torch.zeros(3, dtype=torch.bool))
    assert math.isnan(nothing.value)
    assert nothing.n == 0
