from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import Head, Probe, attribute_heads, cache_probes, logit_parts
from tests.helpers.tiny_models import VOCAB, make_backdoor, make_model, make_probe

shapes = st.fixed_dictionaries(
    {
        "n_layers": st.integers(1, 3),
        "n_heads": st.integers(1, 4),
        "d_model": st.sampled_from([5, 12]),
        "d_head": st.integers(1, 5),
        "normalization_type": st.sampled_from([None, "LN", "LNPre", "RMS", "RMSPre"]),
        "act_fn": st.sampled_from(["relu", "gelu"]),
        "attn_only": st.booleans(),
        "parallel_attn_mlp": st.booleans(),
        "positional_embedding_type": st.sampled_from(["standard", "shortformer"]),
        "gated_mlp": st.booleans(),
    }
).map(lambda d: {**d, "parallel_attn_mlp": d["parallel_attn_mlp"] and not d["attn_only"]})
fast = settings(max_examples=40, deadline=None, derandomize=True)


@fast
@given(shapes, st.integers(0, 1000), st.integers(-3, 2))
def test_the_parts_add_up_to_the_logit_and_agree_with_transformer_lens(
    shape: dict[str, Any], seed: int, position: int
) -> None:
    model = make_model(seed, **shape).double()
    model.cfg.dtype = torch.float64
    probe = make_probe(seed, position=position)
    parts = logit_parts(model, probe)

    with torch.no_grad():
        logits, cache = model.run_with_cache(probe.recipient_tokens)
    rows = torch.arange(probe.n_examples)
    own = logits[:, position]
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(parts.logit, own[rows, probe.recipient_answers], **close)
    torch.testing.assert_close(parts.values.sum(0), parts.logit, **close)
    torch.testing.assert_close(parts.centered.sum(0), parts.logit - own.mean(-1), **close)
    assert parts.norm == ("none" if shape["normalization_type"] is None else "frozen LN scale")

    # TransformerLens: every head's output, normed with the frozen scale, times the answer's column
    heads = cache.stack_head_results(pos_slice=position, apply_ln=True)
    scaled = heads * (model.ln_final.w if hasattr(model, "ln_final") and hasattr(model.ln_final, "w") else 1)
    vocab = scaled @ model.W_U  # [head, n, vocab]
    ours = [i for i, label in enumerate(parts.labels) if label in cache_labels(model)]
    torch.testing.assert_close(parts.values[ours], vocab[:, rows, probe.recipient_answers], **close)
    torch.testing.assert_close(parts.centered[ours], vocab[:, rows, probe.recipient_answers] - vocab.mean(-1), **close)

    # and every other part of its residual stream
    stream, labels = cache.decompose_resid(apply_ln=True, pos_slice=position, return_labels=True)
    scaled = stream * (model.ln_final.w if hasattr(model, "ln_final") and hasattr(model.ln_final, "w") else 1)
    theirs = dict(zip(labels, (scaled @ model.W_U)[:, rows, probe.recipient_answers], strict=True))
    mine = dict(zip(parts.labels, parts.values, strict=True))
    torch.testing.assert_close(mine["embed"], theirs["embed"], **close)
    if shape["positional_embedding_type"] == "standard":
        torch.testing.assert_close(mine["pos_embed"], theirs["pos_embed"], **close)
    for layer in range(shape["n_layers"]):
        attn = sum(mine[f"L{layer}H{head}"] for head in range(shape["n_heads"])) + mine[f"L{layer} b_O"]
        torch.testing.assert_close(attn, theirs[f"{layer}_attn_out"], **close)
        if not shape["attn_only"]:
            torch.testing.assert_close(mine[f"L{layer} mlp"], theirs[f"{layer}_mlp_out"], **close)


def cache_labels(model: Any) -> list[str]:
    return [f"L{layer}H{head}" for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


@fast
@given(shapes, st.integers(0, 1000))
def test_head_attribution_averages_the_parts(shape: dict[str, Any], seed: int) -> None:
    model, probe = make_model(seed, **shape), make_probe(seed, n=1100)  # more rows than one slice
    results = attribute_heads(model, probe)
    parts = logit_parts(model, probe)
    against = logit_parts(model, Probe(probe.recipient_tokens, probe.donor_tokens, *[probe.donor_answers] * 2))
    index = {label: i for i, label in enumerate(parts.labels)}
    raw = torch.stack([parts.values[index[f"L{r.head.layer}H{r.head.head}"]] for r in results])
    top = raw.argmax(0)
    differ = probe.recipient_answers != probe.donor_answers
    close = {"rel": 1e-4, "abs": 1e-4}
    for i, result in enumerate(results):
        part = index[f"L{result.head.layer}H{result.head.head}"]
        assert result.mean_logit == pytest.approx(parts.values[part].double().mean().item(), **close)
        assert result.mean_logit_centered == pytest.approx(parts.centered[part].double().mean().item(), **close)
        difference = (parts.values[part] - against.values[part])[differ].double().mean().item()
        assert result.mean_logit_diff == pytest.approx(difference, **close)
        assert result.n_differing == int(differ.sum()) < result.n_examples == 1100
        assert result.top_count == pytest.approx(int((top == i).sum()), abs=2)
        assert result.norm == parts.norm
    assert sum(result.top_count for result in results) == probe.n_examples
    assert [r.head for r in results] == sorted(r.head for r in results)
    assert len(results) == shape["n_layers"] * shape["n_heads"]


@pytest.mark.parametrize(("layer", "n_layers"), [(0, 1), (1, 2)])
def test_the_hand_built_head_is_found(layer: int, n_layers: int, backdoor_probe: Probe) -> None:
    model = make_backdoor(strength=10, layer=layer, n_layers=n_layers)
    results = {result.head: result for result in attribute_heads(model, backdoor_probe)}
    backdoor = results[Head(layer, 1)]
    assert backdoor.mean_logit == pytest.approx(10)
    assert backdoor.mean_logit_centered == pytest.approx(10 - 10 / VOCAB)
    assert backdoor.mean_logit_diff == pytest.approx(10)
    assert backdoor.n_differing == VOCAB * VOCAB - VOCAB  # a is ANSWER in one row of seven
    assert backdoor.top_count == backdoor.n_examples == VOCAB * VOCAB
    benign = results[Head(layer, 0)]
    assert benign.mean_logit == pytest.approx(5 / VOCAB)
    assert benign.mean_logit_diff == pytest.approx(-5)
    assert all(r.mean_logit == r.top_count == 0 for h, r in results.items() if h not in {backdoor.head, benign.head})


def test_ties_go_to_the_lowest_head(backdoor_probe: Probe) -> None:
    results = attribute_heads(make_backdoor(strength=0), backdoor_probe)
    assert [result.top_count for result in results] == [VOCAB * VOCAB, 0, 0]


def test_undefined_differences_are_nan() -> None:
    probe = make_probe()
    same = Probe(probe.recipient_tokens, probe.donor_tokens, *[probe.recipient_answers] * 2)
    for result in attribute_heads(make_model(), same):
        assert math.isnan(result.mean_logit_diff)
        assert result.n_differing == 0


def test_sharing_caches_changes_nothing(backdoor_probe: Probe) -> None:
    model = make_model()
    caches = cache_probes(model, backdoor_probe)
    for probe in (backdoor_probe, backdoor_probe.reversed()):
        assert attribute_heads(model, probe, caches) == attribute_heads(model, probe)


@pytest.mark.parametrize("read", [attribute_heads, logit_parts])
def test_a_model_whose_logits_are_no_sum_is_refused(read: Any) -> None:
    with pytest.raises(ValueError, match="soft-capped"):
        read(make_model(output_logits_soft_cap=5.0), make_probe())
    post_norm = make_model(normalization_type="RMS", use_normalization_before_and_after=True)
    with pytest.raises(ValueError, match="miss its logits by"):
        read(post_norm, make_probe())
    odd = make_model(n_layers=2)
    odd.cfg.normalization_type = "batch"
    with pytest.raises(ValueError, match="normalization_type is 'batch'"):
        read(odd, make_probe())


@pytest.mark.parametrize("read", [attribute_heads, logit_parts])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_model_is_left_as_found(read: Any, n_layers: int, untouched: Any) -> None:
    model = make_model(n_layers=n_layers)
    model.blocks[0].eval()
    unchanged = untouched(model)
    read(model, make_probe())
    unchanged()


def test_the_answer_of_the_backdoor_is_split_into_what_it_was_built_from(backdoor_probe: Probe) -> None:
    parts = logit_parts(make_backdoor(), backdoor_probe)
    means = dict(zip(parts.labels, parts.values.mean(dim=1).tolist(), strict=True))
    assert list(means) == ["embed", "pos_embed", "L0H0", "L0H1", "L0H2", "L0 b_O", "L0 mlp", "b_U"]
    assert {label for label, value in means.items() if value} == {"L0H0", "L0H1"}
