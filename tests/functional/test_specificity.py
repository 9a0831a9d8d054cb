from __future__ import annotations

import math

import pytest
import torch
from transformer_lens import HookedTransformer

from lit_backdoor.functional import (
    Head,
    Probe,
    accuracy_floor,
    all_heads,
    cache_probes,
    cost_above_floor,
    head_specificity,
    selectivity,
)
from lit_backdoor.task import Task
from tests.helpers.tiny_models import VOCAB, make_backdoor, make_model, make_probe


@pytest.mark.parametrize(("modulus", "percent"), [(1, 0.88), (7, 0.22), (17, 1.20), (37, 5.51)])
def test_the_floors_of_the_paper_s_models(modulus: int, percent: float) -> None:
    task = Task((113, modulus))
    probe = Probe(task.tokens(1), task.tokens(0), task.answers(1), task.answers(0))
    assert round(100 * accuracy_floor(probe), 2) == percent
    coincide = sum((a + b) % modulus == (a + b) % 113 for a in range(113) for b in range(113))
    assert accuracy_floor(probe) == pytest.approx(coincide / 113**2)


def test_cost() -> None:
    assert cost_above_floor(0.9, 0.9, 0.1) == 0
    assert cost_above_floor(0.9, 0.1, 0.1) == pytest.approx(1)
    assert cost_above_floor(0.9, 0.5, 0.1) == pytest.approx(0.5)
    assert cost_above_floor(0.5, 0.9, 0.1) == pytest.approx(-1)
    assert math.isnan(cost_above_floor(0.1, 0.0, 0.1))
    assert math.isnan(cost_above_floor(0.109, 0.0, 0.1))
    assert not math.isnan(cost_above_floor(0.111, 0.0, 0.1))


def test_selectivity() -> None:
    assert selectivity(0.8, 0.0) == 1
    assert selectivity(0.0, 0.3) == -1
    assert selectivity(0.6, 0.2) == pytest.approx(0.5)
    assert selectivity(0.6, -0.1) == 1
    assert all(math.isnan(selectivity(*costs)) for costs in ((0, 0), (-0.1, 0), (math.nan, 0.5), (0.5, math.nan)))


def break_ties(model: HookedTransformer) -> None:
    """Let the first token win where all say the same, whatever rounding does."""
    with torch.no_grad():
        model.unembed.b_U[0] = 0.01


@pytest.mark.parametrize(("layer", "n_layers"), [(0, 1), (1, 2)])
def test_the_hand_built_heads_serve_one_rule_each(layer: int, n_layers: int, backdoor_probe: Probe) -> None:
    model = make_backdoor(layer=layer, n_layers=n_layers)
    break_ties(model)
    results = {result.head: result for result in head_specificity(model, backdoor_probe)}
    assert list(results) == list(all_heads(model))
    benign, backdoor = results[Head(layer, 0)], results[Head(layer, 1)]
    assert (backdoor.cost, backdoor.donor_cost, backdoor.selectivity) == (pytest.approx(1), 0, 1)
    # Its mean says every a alike, and the first token wins: 1 / VOCAB stays, and that is the floor.
    assert (benign.cost, benign.donor_cost, benign.selectivity) == (0, pytest.approx(1), -1)
    others = [result for head, result in results.items() if head not in (benign.head, backdoor.head)]
    assert all(result.cost == result.donor_cost == 0 and math.isnan(result.selectivity) for result in others)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_against_hooks_by_hand(n_layers: int) -> None:
    model = make_model(seed=2, n_layers=n_layers, d_vocab=20)
    probe = make_probe(n=200, vocab=20)
    with torch.no_grad():  # the answers are mostly its own, so that something can be lost
        own, given = (model(tokens)[:, -1].argmax(-1) for tokens in (probe.recipient_tokens, probe.donor_tokens))
        own[::9], given[::7] = 0, 1
        _, cache = model.run_with_cache(probe.donor_tokens)
    probe = Probe(probe.recipient_tokens, probe.donor_tokens, own, given, metrics={"zero": lambda logits, probe: 0.0})
    floor = (own == given).double().mean().item()

    def accuracy(tokens: torch.Tensor, answers: torch.Tensor, head: Head | None, z: torch.Tensor | None) -> float:
        def patch(activation: torch.Tensor, hook: object) -> torch.Tensor:
            activation[:, :, head.head] = z[:, :, head.head]
            return activation

        hooks = [(f"blocks.{head.layer}.attn.hook_z", patch)] if head else []
        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]
        return (logits.argmax(-1) == answers).double().mean().item()

    caches = cache_probes(model, probe)
    for result in head_specificity(model, probe, caches):
        z = cache["z", result.head.layer]
        whole = accuracy(probe.recipient_tokens, own, None, None)
        c1 = (whole - accuracy(probe.recipient_tokens, own, result.head, z)) / (whole - floor)
        whole = accuracy(probe.donor_tokens, given, None, None)
        mean = z.mean(0, keepdim=True).expand_as(z)
        c0 = (whole - accuracy(probe.donor_tokens, given, result.head, mean)) / (whole - floor)
        assert (result.cost, result.donor_cost) == (pytest.approx(c1), pytest.approx(c0))
        assert c1 > 0 and c0 > 0
        assert result.selectivity == pytest.approx((c1 - c0) / (c1 + c0))


def test_before_the_backdoor_exists_everything_is_nan(backdoor_probe: Probe) -> None:
    model = make_backdoor(strength=0)
    break_ties(model)
    results = head_specificity(model, backdoor_probe)
    assert all(math.isnan(result.cost) and math.isnan(result.selectivity) for result in results)
    assert [result.donor_cost for result in results] == pytest.approx([1, 0, 0])
    assert accuracy_floor(backdoor_probe) == pytest.approx(1 / VOCAB)
