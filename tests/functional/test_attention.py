from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import Head, HeadAttention, Probe, compare_attention, mean_attention
from tests.helpers.tiny_models import make_backdoor, make_model, make_probe

shapes = st.fixed_dictionaries(
    {
        "n_layers": st.integers(1, 3),
        "n_heads": st.integers(1, 4),
        "d_head": st.integers(1, 5),
        "normalization_type": st.sampled_from([None, "LN"]),
        "attention_dir": st.sampled_from(["causal", "bidirectional"]),
    }
)
fast = settings(max_examples=25, deadline=None, derandomize=True)


@fast
@given(shapes, st.integers(0, 1000), st.integers(-3, 2), st.sampled_from([17, 600]))
def test_against_the_cache_of_transformer_lens(shape: dict[str, Any], seed: int, position: int, n: int) -> None:
    model, probe = make_model(seed, **shape), make_probe(seed, n=n, position=position)
    results = compare_attention(model, probe)
    with torch.no_grad():
        caches = [model.run_with_cache(tokens)[1] for tokens in (probe.recipient_tokens, probe.donor_tokens)]
    expected = []
    for layer in range(shape["n_layers"]):
        patterns = [cache["pattern", layer][:, :, position].double().numpy() for cache in caches]  # [n, head, pos]
        outputs = [
            np.einsum("nhd,hdm->nhm", cache["z", layer][:, position].numpy(), model.W_O[layer].detach().numpy())
            for cache in caches
        ]
        for head in range(shape["n_heads"]):
            own, given_ = (pattern[:, head] for pattern in patterns)
            change = np.linalg.norm((outputs[0] - outputs[1])[:, head], axis=-1).mean()
            entropy = [-(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0)).sum(-1).mean() for p in (own, given_)]
            spread = [tuple(values.mean(0)) + tuple(values.std(0)) for values in (own, given_, own - given_)]
            expected.append((Head(layer, head), np.array(spread), entropy, change))
    for result, (head, spread, entropy, change) in zip(results, expected, strict=True):
        assert (result.head, result.n_examples) == (head, n)
        ours = [
            result.recipient + result.recipient_std,
            result.donor + result.donor_std,
            result.shift + result.shift_std,
        ]
        np.testing.assert_allclose(np.array(ours), spread, atol=1e-5)
        assert [result.entropy, result.donor_entropy] == pytest.approx(entropy, abs=1e-5)
        assert result.output_change == pytest.approx(change, rel=1e-4, abs=1e-6)
        assert sum(result.recipient) == pytest.approx(1)
    mean = mean_attention(model, probe.recipient_tokens, position)
    ours = torch.tensor([result.recipient for result in results]).view_as(mean)
    torch.testing.assert_close(ours, mean, rtol=1e-5, atol=1e-6)


def test_the_hand_built_backdoor(backdoor_probe: Probe) -> None:
    """Both heads look where they were built to, under either trigger; the second one's output is what the trigger
    moves."""
    model = make_backdoor()
    results = {result.head: result for result in compare_attention(model, backdoor_probe)}
    looks_at = {Head(0, 0): (1, 0, 0), Head(0, 1): (0, 0, 1), Head(0, 2): (1 / 3, 1 / 3, 1 / 3)}
    for head, attention in looks_at.items():
        assert results[head].recipient == pytest.approx(attention)
        assert results[head].shift == pytest.approx((0, 0, 0))
        assert results[head].recipient_std == pytest.approx((0, 0, 0))
    assert [results[head].entropy for head in looks_at] == pytest.approx([0, 0, np.log(3)])
    # It writes 10 to ANSWER's logit for trigger 1 and nothing for trigger 0.
    assert [results[head].output_change for head in looks_at] == pytest.approx([0, 10, 0])


def test_the_same_run_twice_has_no_shift() -> None:
    probe = make_probe()
    same = Probe(probe.recipient_tokens, probe.recipient_tokens, probe.recipient_answers, probe.donor_answers)
    for result in compare_attention(make_model(), same):
        assert result.shift == result.shift_std == (0, 0, 0)
        assert result.output_change == 0
        assert result.recipient == result.donor


@pytest.mark.parametrize("shape", [{}, {"n_layers": 2}, {"normalization_type": "LN"}])
def test_the_model_is_left_as_it_was(shape: dict[str, Any], untouched: Any) -> None:
    model = make_model(**shape)
    model.blocks[0].eval()
    unchanged = untouched(model)
    assert isinstance(compare_attention(model, make_probe())[0], HeadAttention)
    unchanged()


class WithoutPatterns:
    """A hooked model that keeps its attention patterns to itself."""

    def __init__(self) -> None:
        self.model = make_model(n_layers=2)
        self.cfg, self.W_O, self.W_U = self.model.cfg, self.model.W_O, self.model.W_U

    def run_with_cache(self, tokens: torch.Tensor, names_filter: list[str]) -> Any:
        names = [name for name in names_filter if not name.endswith("hook_pattern")]
        return self.model.run_with_cache(tokens, names_filter=names)

    def run_with_hooks(self, tokens: torch.Tensor, fwd_hooks: Any) -> Any:
        return self.model.run_with_hooks(tokens, fwd_hooks=fwd_hooks)


def test_a_model_without_patterns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no hook points \['blocks.0.attn.hook_pattern', 'blocks.1"):
        compare_attention(WithoutPatterns(), make_probe())
