"""The functions on TransformerLens's two kinds of models, against hooks by hand."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from lit_backdoor.functional import (
    HookedModel,
    Probe,
    all_edges,
    all_heads,
    attribute_heads,
    cache_probes,
    compare_attention,
    default_head_sets,
    head_gradients,
    logit_parts,
    mean_attention,
    patch_heads,
    patch_paths,
    patched_path_logits,
    weight_norms,
    why_no_shortcut,
)
from lit_backdoor.functional.hooked_model import carries_hooks
from lit_backdoor.functional.last_position import why_not_exact
from tests.helpers import by_hand
from tests.helpers.both_kinds import HAS_HOOKED_TRANSFORMER, KINDS, SHAPES, make_model, randomize, same_weights
from tests.helpers.tiny_models import make_probe

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def random_probe(position: int = -1, **changes: Any) -> Probe:
    return make_probe(n=30, n_pos=5, position=position, **changes)


@shapes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [-1, 2])
def test_attribution_agrees_with_stack_head_results(kind: str, shape: dict[str, Any], position: int) -> None:
    model, probe = randomize(make_model(kind, **shape)), random_probe(position)
    contributions = by_hand.head_contributions(model, probe.recipient_tokens, position)  # [head, n, vocab]
    rows = torch.arange(30)
    answer = contributions[:, rows, probe.recipient_answers].double()
    other = contributions[:, rows, probe.donor_answers].double()
    centered = answer - contributions.double().mean(-1)
    top = answer.argmax(0).bincount(minlength=len(answer)).tolist()
    differ = probe.answers_differ
    found = attribute_heads(model, probe)
    assert [each.head for each in found] == list(all_heads(model))
    for i, each in enumerate(found):
        assert each.mean_logit == pytest.approx(answer[i].mean().item(), rel=1e-4, abs=1e-5)
        assert each.mean_logit_centered == pytest.approx(centered[i].mean().item(), rel=1e-4, abs=1e-5)
        assert each.mean_logit_diff == pytest.approx((answer - other)[i][differ].mean().item(), rel=1e-4, abs=1e-4)
        assert each.top_count == top[i]
        assert each.norm == ("frozen LN scale" if shape.get("normalization_type") else "none")


@shapes
@pytest.mark.parametrize("kind", KINDS)
def test_patching_agrees_with_hooks(kind: str, shape: dict[str, Any], untouched: Any) -> None:
    model, probe = randomize(make_model(kind, **shape)), random_probe()
    heads = all_heads(model)
    sets = [(), heads[:1], heads[-1:], (heads[0], heads[-1]), heads]
    unchanged = untouched(model)
    results = patch_heads(model, probe, sets)
    unchanged()
    for each, result in zip(sets, results, strict=True):
        logits = by_hand.patched_logits(model, probe.recipient_tokens, probe.donor_tokens, each)[:, -1].double()
        given, log_probs = logits.argmax(-1), logits.log_softmax(-1)
        assert result.recipient_accuracy == (given == probe.recipient_answers).double().mean().item()
        assert result.donor_accuracy == (given == probe.donor_answers).double().mean().item()
        log_prob = log_probs.gather(1, probe.recipient_answers[:, None]).mean().item()
        assert result.log_prob == pytest.approx(log_prob, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre"])
def test_a_hook_of_the_users_stays_in_force(kind: str, point: str, untouched: Any) -> None:
    model, probe = randomize(make_model(kind, normalization_type="LN")), random_probe()
    heads = all_heads(model)
    sets = [(), heads[:1], heads[-1:], heads]
    plain = patch_heads(model, probe, sets)
    assert not carries_hooks(model)
    model.add_hook(point, lambda activation, hook: 2 * activation, is_permanent=True)
    assert carries_hooks(model)
    unchanged = untouched(model)
    hooked = patch_heads(model, probe, sets)
    unchanged()
    for each, before, after in zip(sets, plain, hooked, strict=True):
        logits = by_hand.patched_logits(model, probe.recipient_tokens, probe.donor_tokens, each)[:, -1].double()
        log_prob = logits.log_softmax(-1).gather(1, probe.recipient_answers[:, None]).mean().item()
        assert after.log_prob == pytest.approx(log_prob, rel=1e-4)
        assert after.log_prob != pytest.approx(before.log_prob, rel=1e-3)


@shapes
@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4.0 removed HookedTransformer")
def test_both_kinds_give_the_same_numbers(shape: dict[str, Any]) -> None:
    hooked, bridge = same_weights(**shape)
    probe = random_probe()
    assert isinstance(bridge, HookedModel)
    assert cache_probes(bridge, probe) == ()
    for ours, theirs in zip(logit_parts(bridge, probe).values, logit_parts(hooked, probe).values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert logit_parts(bridge, probe).labels == logit_parts(hooked, probe).labels
    attention = [mean_attention(model, probe.recipient_tokens) for model in (bridge, hooked)]
    torch.testing.assert_close(*attention, rtol=1e-5, atol=1e-6)
    norms = [weight_norms(model) for model in (bridge, hooked)]
    assert norms[0].embed == pytest.approx(norms[1].embed)
    assert (norms[0].qk, norms[0].ov) == (pytest.approx(norms[1].qk), pytest.approx(norms[1].ov))
    sets = default_head_sets(hooked.cfg.n_layers, hooked.cfg.n_heads)[:8]
    for ours, theirs in zip(compare_attention(bridge, probe), compare_attention(hooked, probe), strict=True):
        assert (ours.head, ours.n_examples) == (theirs.head, theirs.n_examples)
        assert ours.recipient + ours.shift_std == pytest.approx(theirs.recipient + theirs.shift_std, abs=1e-5)
        assert ours.output_change == pytest.approx(theirs.output_change, rel=1e-3)
    both = [
        *zip(attribute_heads(bridge, probe), attribute_heads(hooked, probe), strict=True),
        *zip(patch_heads(bridge, probe, sets), patch_heads(hooked, probe, sets), strict=True),
    ]
    for ours, theirs in both:
        for name, value in asdict(ours).items():
            expected = getattr(theirs, name)
            assert value == (pytest.approx(expected, rel=1e-3, abs=1e-4) if isinstance(value, float) else expected)


def test_parameters_of_another_form_have_no_gradients_by_head() -> None:
    probe = random_probe()
    with pytest.raises(ValueError, match="W_Q of TransformerBridge is no parameter of 3 heads"):
        head_gradients(
            make_model("TransformerBridge", n_layers=1),
            probe.recipient_tokens,
            probe.recipient_answers,
            probe.donor_answers,
        )


@shapes
@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4.0 removed HookedTransformer")
def test_paths_of_both_kinds_are_the_same(shape: dict[str, Any]) -> None:
    """As far as a native TransformerBridge has the hooks: it cannot split the inputs of its heads."""
    hooked, bridge = same_weights(**shape)
    if not shape.get("attn_only"):
        for model in (hooked, bridge):
            model.set_use_hook_mlp_in(True)
    probe = random_probe()
    edges = all_edges(bridge, probe)
    assert edges == all_edges(hooked, probe)
    past_inputs = [edge for edge in edges if edge.receiver.head is None]
    for each in ([], past_inputs, past_inputs[:1], past_inputs[-1:]):
        ours, theirs = (patched_path_logits(model, probe, each) for model in (bridge, hooked))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1, float(theirs.abs().max())))
    with pytest.raises(ValueError, match=r"TransformerBridge cannot.*hook_q_input does not fire"):
        patch_paths(bridge, probe, [edges[:1]])


def test_the_shortcut_is_for_hooked_transformers_alone() -> None:
    bridge = make_model("TransformerBridge", n_layers=1)
    assert why_no_shortcut(bridge) == "TransformerBridge has a forward pass of its own"
    assert why_not_exact(bridge) == "not a HookedTransformer"


@shapes
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_add_up(kind: str, shape: dict[str, Any], untouched: Any) -> None:
    model, probe = randomize(make_model(kind, **shape)), random_probe()
    unchanged = untouched(model)
    probe.check(model)
    parts = logit_parts(model, probe)
    unchanged()
    with torch.no_grad():
        logits = model(probe.recipient_tokens)[:, -1]
    own = logits[torch.arange(30), probe.recipient_answers]
    torch.testing.assert_close(parts.logit, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.values.sum(0), own, rtol=1e-4, atol=1e-4)
