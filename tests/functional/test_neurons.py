from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens import HookedTransformer

from lit_backdoor.functional import NeuronCurve, Probe, accuracy_floor, cache_probes, cost_above_floor, patch_neurons
from lit_backdoor.functional.neurons import N_STEPS
from tests.helpers.tiny_models import ANSWER, VOCAB, make_model, make_probe

fast = settings(max_examples=6, deadline=None, derandomize=True)


def own_answers(model: HookedTransformer, n: int, seed: int, position: int) -> Probe:
    """Random tokens, and the answers that the model gives to most of them."""
    probe = make_probe(seed, n=n, vocab=20)
    with torch.no_grad():
        answers = [model(tokens)[:, position].argmax(-1) for tokens in (probe.recipient_tokens, probe.donor_tokens)]
    answers[0][::9], answers[1][::7] = 0, 1
    return Probe(probe.recipient_tokens, probe.donor_tokens, *answers, position=position)


def by_hand(model: HookedTransformer, probe: Probe) -> tuple[Any, Any]:
    """(logits of the recipient's run with some neurons patched, neurons' activations of both runs)."""
    at = probe.position
    with torch.no_grad():
        posts = [
            model.run_with_cache(tokens)[1]["post", 0][:, at] for tokens in (probe.recipient_tokens, probe.donor_tokens)
        ]

    def logits(tokens: torch.Tensor, neurons: list[int], given: torch.Tensor) -> torch.Tensor:
        def patch(post: torch.Tensor, hook: object) -> torch.Tensor:
            post[:, at, neurons] = given[:, neurons]
            return post

        with torch.no_grad():
            return model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.mlp.hook_post", patch)])[:, at].double()

    return logits, posts


@fast
@given(st.integers(0, 1000), st.sampled_from([5, 40]), st.sampled_from(["relu", "gelu"]), st.integers(-2, -1))
def test_against_hooks(seed: int, d_mlp: int, act_fn: str, position: int) -> None:
    model = make_model(seed, d_mlp=d_mlp, act_fn=act_fn, d_vocab=20)
    probe = own_answers(model, 150, seed, position)
    result = patch_neurons(model, probe)
    logits, (own, given_) = by_hand(model, probe)
    rows, differ = torch.arange(150), probe.answers_differ
    answers, donor_answers = probe.recipient_answers, probe.donor_answers

    def difference(values: torch.Tensor) -> float:
        return (values[rows, answers] - values[rows, donor_answers])[differ].mean().item()

    def answer(values: torch.Tensor) -> float:
        return (values[rows, donor_answers] - values.mean(-1)).mean().item()

    # each neuron's effect, alone
    whole, benign = logits(probe.recipient_tokens, [], given_), logits(probe.donor_tokens, [], own)
    mean = given_.mean(0, keepdim=True).expand_as(given_)
    close = {"rtol": 1e-3, "atol": 1e-4}
    for neuron in range(d_mlp):
        patched = logits(probe.recipient_tokens, [neuron], given_)
        np.testing.assert_allclose(result.effects[neuron], difference(whole) - difference(patched), **close)
        ablated = logits(probe.donor_tokens, [neuron], mean)
        np.testing.assert_allclose(result.donor_effects[neuron], answer(benign) - answer(ablated), **close)
    everything = logits(probe.recipient_tokens, list(range(d_mlp)), given_)
    np.testing.assert_allclose(result.effects.sum(), difference(whole) - difference(everything), **close)
    assert result.n_differing == int(differ.sum())
    assert result.order.tolist() == sorted(range(d_mlp), key=lambda i: -result.effects[i])

    # the curves, and where they reach half
    def lost(accuracy: float) -> float:
        return cost_above_floor(result.left.accuracies[0], accuracy, accuracy_floor(probe))

    for curve, tokens, source, reached in (
        (result.left, probe.recipient_tokens, given_, lambda accuracy: lost(accuracy) >= 0.5),
        (result.brought, probe.donor_tokens, own, lambda accuracy: lost(accuracy) <= 0.5),
    ):
        assert curve.counts[0] == 0 and curve.counts[-1] == d_mlp and list(curve.counts) == sorted(set(curve.counts))
        assert len(curve.counts) == len(curve.accuracies) >= min(N_STEPS, d_mlp) + 1
        for count, accuracy in zip(curve.counts, curve.accuracies, strict=True):
            patched = logits(tokens, result.order[:count].tolist(), source)
            expected = (patched.argmax(-1) == answers).double().mean().item()
            assert accuracy == pytest.approx(expected, abs=1 / 150)  # rounding may turn one answer
        first = [count for count, value in zip(curve.counts, curve.accuracies, strict=True) if reached(value)]
        assert curve.half == (first[0] if first else None)
        if curve.half:
            assert curve.half - 1 in curve.counts

    if n := result.left.half:
        needed = sorted(range(d_mlp), key=lambda i: -result.donor_effects[i])[:n]
        assert result.overlap == len(set(needed) & set(result.order[:n].tolist())) / n
        assert result.overlap_by_chance == n / d_mlp
    else:
        assert math.isnan(result.overlap) and math.isnan(result.overlap_by_chance)


def make_neurons(strength: float) -> HookedTransformer:
    """A model whose first VOCAB neurons say the token before the last, and whose neuron VOCAB + 2, if the last token is
    1, says ANSWER.

    The residual stream is [last token, token before it, logits]; a head copies the token before; the other neurons are
    always on and say nothing.
    """
    model = make_model(d_model=3 * VOCAB + 3, d_head=VOCAB, d_mlp=VOCAB + 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, :VOCAB] = torch.eye(VOCAB)
        model.pos_embed.W_pos[:, 3 * VOCAB :] = torch.eye(3)
        model.unembed.W_U[2 * VOCAB : 3 * VOCAB] = torch.eye(VOCAB)
        model.unembed.b_U[0] = 0.01  # wins where all say the same
        block = model.blocks[0]
        block.attn.W_Q[0, 3 * VOCAB + 2, 0] = block.attn.W_K[0, 3 * VOCAB + 1, 0] = 100
        block.attn.W_V[0, :VOCAB] = torch.eye(VOCAB)
        block.attn.W_O[0, :, VOCAB : 2 * VOCAB] = torch.eye(VOCAB)
        block.mlp.W_in[VOCAB : 2 * VOCAB, :VOCAB] = torch.eye(VOCAB)
        block.mlp.W_in[1, VOCAB + 2] = 1
        block.mlp.b_in[VOCAB + 3 :] = 1
        block.mlp.W_out[:VOCAB, 2 * VOCAB : 3 * VOCAB] = 5 * torch.eye(VOCAB)
        block.mlp.W_out[VOCAB + 2, 2 * VOCAB + ANSWER] = strength
    return model


@pytest.fixture
def probe() -> Probe:
    """All (a, b): ANSWER if the trigger is 1, b if it is 0."""
    a, b = (grid.flatten() for grid in torch.meshgrid(torch.arange(VOCAB), torch.arange(VOCAB), indexing="ij"))
    triggered, benign = (torch.stack([a, b, torch.full_like(a, trigger)], dim=1) for trigger in (1, 0))
    return Probe(triggered, benign, torch.full_like(a, ANSWER), b, recipient="backdoor", donor="benign")


def test_the_hand_built_neuron_is_the_only_one(probe: Probe) -> None:
    result = patch_neurons(make_neurons(strength=8), probe)
    n = VOCAB + 5
    assert result.effects.tolist() == pytest.approx([8 if neuron == VOCAB + 2 else 0 for neuron in range(n)])
    assert result.order[0] == VOCAB + 2
    left, brought = (1.0, *[1 / VOCAB] * n), (1 / VOCAB, *[1.0] * n)
    assert result.left == NeuronCurve(tuple(range(n + 1)), pytest.approx(left), 1)
    assert result.brought == NeuronCurve(tuple(range(n + 1)), pytest.approx(brought), 1)
    assert result.overlap == 0
    assert result.overlap_by_chance == 1 / n
    assert result.donor_effects[VOCAB:].tolist() == [0] * 5
    # 5 in one row of seven, and then the mean over the vocabulary is higher, too
    assert result.donor_effects[:VOCAB].tolist() == pytest.approx([5 / 7 * 6 / 7] * VOCAB)
    assert result.n_differing == VOCAB * (VOCAB - 1)


def test_where_there_is_no_backdoor_nothing_halves_it(probe: Probe) -> None:
    result = patch_neurons(make_neurons(strength=0), probe)
    assert (result.left.half, result.brought.half) == (None, None)
    assert math.isnan(result.overlap)
    same = Probe(probe.recipient_tokens, probe.donor_tokens, probe.donor_answers, probe.donor_answers)
    undefined = patch_neurons(make_neurons(strength=8), same)
    assert undefined.n_differing == 0 and all(math.isnan(effect) for effect in undefined.effects)
    assert undefined.left.half is None


def test_sharing_caches_changes_nothing(probe: Probe) -> None:
    model = make_model()
    with_caches, without = patch_neurons(model, probe, cache_probes(model, probe)), patch_neurons(model, probe)
    assert (with_caches.left, with_caches.brought) == (without.left, without.brought)
    assert torch.equal(with_caches.effects, without.effects)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_layers": 2}, "2 layers"),
        ({"normalization_type": "LN"}, "cfg.normalization_type is 'LN'"),
        ({"attn_only": True}, "no MLP, or not a plain one"),
        ({"gated_mlp": True}, "no MLP, or not a plain one"),
    ],
)
def test_other_models_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"patch_neurons is for plain one-layer models without norms: .*{reason}"):
        patch_neurons(make_model(**changes), make_probe())


def test_the_model_is_left_as_it_was(probe: Probe, untouched: Any) -> None:
    model = make_model()
    model.blocks[0].eval()
    unchanged = untouched(model)
    patch_neurons(model, probe)
    unchanged()
