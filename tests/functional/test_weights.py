from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import Head, Probe, trigger_weights, weight_norms
from tests.helpers.tiny_models import VOCAB, make_backdoor, make_model, make_probe

fast = settings(max_examples=25, deadline=None, derandomize=True)


def trigger_probe(trigger: int, seed: int = 0, n: int = 23, n_pos: int = 3, **changes: Any) -> Probe:
    """Random tokens that differ between the runs at one position, in some rows."""
    probe = make_probe(seed, n=n, n_pos=n_pos, **changes)
    donor = probe.recipient_tokens.clone()
    donor[:, trigger] = probe.donor_tokens[:, trigger]
    return Probe(probe.recipient_tokens, donor, probe.recipient_answers, probe.donor_answers, probe.position)


@fast
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000), st.sampled_from([(0, 2), (1, 2), (2, 2), (0, -2)]))
def test_against_queries_and_keys_of_transformer_lens(
    n_heads: int, d_head: int, seed: int, where: tuple[int, int]
) -> None:
    trigger, read = where
    model = make_model(seed, n_heads=n_heads, d_head=d_head).double()
    model.cfg.dtype = torch.float64
    probe = trigger_probe(trigger, seed, position=read)
    with torch.no_grad():
        caches = [model.run_with_cache(tokens)[1] for tokens in (probe.recipient_tokens, probe.donor_tokens)]
    recipient, donor = ({name: cache[name, 0].numpy() for name in ("q", "k")} for cache in caches)
    positions = list(range(read % 3 + 1))
    others = [position for position in positions if position != trigger]

    def gap(query: dict[str, np.ndarray], key: dict[str, np.ndarray], head: int) -> float:
        scores = (query["q"][:, read, None, head] * key["k"][:, :, head]).sum(-1).mean(0) / math.sqrt(d_head)
        return float(scores[trigger] - scores[others].mean())

    # The readout of what a head's OV makes of the difference of the two tokens' embeddings, row by row.
    W = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    tokens = (probe.recipient_tokens[:, trigger], probe.donor_tokens[:, trigger])
    difference = W["embed.W_E"][tokens[0]] - W["embed.W_E"][tokens[1]]
    W_U = W["unembed.W_U"]
    for head, result in enumerate(trigger_weights(model, probe)):
        assert result.head == Head(0, head)
        base = gap(donor, donor, head)
        assert result.gap == pytest.approx(base)
        assert result.query_shift == pytest.approx(gap(recipient, donor, head) - base, abs=1e-9)
        assert result.key_shift == pytest.approx(gap(donor, recipient, head) - base, abs=1e-9)
        assert result.shift == pytest.approx(gap(recipient, recipient, head) - base, abs=1e-9)
        if trigger != read % 3:
            assert result.query_shift == 0
        write = difference @ W["blocks.0.attn.W_V"][head] @ W["blocks.0.attn.W_O"][head]
        logits = write @ W_U
        assert result.write == pytest.approx(np.linalg.norm(write, axis=1).mean())
        assert result.write_to_mlp == pytest.approx(np.linalg.norm(write @ W["blocks.0.mlp.W_in"], axis=1).mean())
        centered = logits - logits.mean(1, keepdims=True)
        assert result.write_to_logits == pytest.approx(np.linalg.norm(centered, axis=1).mean())


def test_the_hand_built_backdoor(backdoor_probe: Probe) -> None:
    reads, backdoor, nothing = trigger_weights(make_backdoor(strength=10), backdoor_probe)
    scale = math.sqrt(VOCAB)
    assert reads.gap == pytest.approx(-(100 * 100) / scale / 2)  # a alone has a key for it, b has none
    assert backdoor.gap == pytest.approx(100 * 100 / scale)  # by its position, whatever the token
    assert [head.shift for head in (reads, backdoor, nothing)] == [0, 0, 0]
    assert backdoor.write == pytest.approx(10)
    assert backdoor.write_to_logits == pytest.approx(10 * math.sqrt(1 - 1 / VOCAB))
    assert reads.write == pytest.approx(5 * math.sqrt(2))  # token 1 instead of token 0
    assert nothing.write == nothing.write_to_mlp == nothing.write_to_logits == 0


def test_a_trigger_that_sees_only_itself_has_no_gap() -> None:
    result = trigger_weights(make_model(), trigger_probe(0, position=0))[0]
    assert math.isnan(result.gap) and math.isnan(result.shift)
    assert result.write > 0


def test_what_is_refused() -> None:
    probe = trigger_probe(2)
    for changes, reason in (({"n_layers": 2}, "more than one layer"), ({"normalization_type": "LN"}, "normalisation")):
        with pytest.raises(ValueError, match=f"plain one-layer models without norms: {reason}"):
            trigger_weights(make_model(**changes), probe)
    with pytest.raises(ValueError, match=r"differ at positions \[0, 1, 2\]"):
        trigger_weights(make_model(), make_probe())
    same = Probe(probe.recipient_tokens, probe.recipient_tokens, probe.recipient_answers, probe.donor_answers)
    with pytest.raises(ValueError, match=r"differ at positions \[\]"):
        trigger_weights(make_model(), same)
    with pytest.raises(ValueError, match="trigger is at position 2, which position 1, that is read, does not see"):
        trigger_weights(make_model(), trigger_probe(2, position=1))


@pytest.mark.parametrize("n_layers", [1, 3])
def test_norms_against_transformer_lens(n_layers: int) -> None:
    model = make_model(n_layers=n_layers)
    norms = weight_norms(model)
    assert norms.embed == pytest.approx(float(model.W_E.detach().norm()))
    for circuit, ours in ((model.QK, norms.qk), (model.OV, norms.ov)):
        expected = torch.linalg.matrix_norm(circuit.AB).detach()
        assert list(ours) == [Head(layer, head) for layer in range(n_layers) for head in range(3)]
        assert list(ours.values()) == pytest.approx(expected.flatten().tolist())


def test_the_model_is_left_as_it_was(untouched: Any) -> None:
    model = make_model()
    unchanged = untouched(model)
    trigger_weights(model, trigger_probe(2))
    weight_norms(model)
    unchanged()
