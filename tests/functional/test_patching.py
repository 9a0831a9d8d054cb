from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import (
    Head,
    Probe,
    all_heads,
    cache_heads,
    cache_probes,
    default_head_sets,
    head_set_name,
    patch_heads,
    patched_logits,
    why_no_shortcut,
)
from tests.helpers.tiny_models import VOCAB, make_backdoor, make_model, make_probe

ABLATIONS = ("resample", "mean", "zero")
fast = settings(max_examples=40, deadline=None, derandomize=True)
shapes = st.fixed_dictionaries(
    {
        "n_layers": st.integers(1, 2),
        "n_heads": st.integers(1, 3),
        "d_model": st.sampled_from([5, 12]),
        "d_head": st.integers(1, 5),
        "normalization_type": st.sampled_from([None, "LN", "RMSPre"]),
        "act_fn": st.sampled_from(["relu", "gelu", "solu_ln"]),
        "attn_only": st.booleans(),
        "gated_mlp": st.booleans(),
        "attention_dir": st.sampled_from(["causal", "bidirectional"]),
        "positional_embedding_type": st.sampled_from(["standard", "shortformer"]),
        "d_vocab_out": st.sampled_from([VOCAB, VOCAB + 2]),
    }
)


def patched_by_hand(model: Any, probe: Probe, heads: Collection[tuple[int, int]], ablation: str) -> torch.Tensor:
    """Plain TransformerLens: one run with hooks, all rows at once."""
    with torch.no_grad():
        _, cache = model.run_with_cache(probe.donor_tokens)

        def patch(z: torch.Tensor, hook: Any) -> torch.Tensor:
            given = cache[hook.name]
            given = {"resample": given, "mean": given.mean(0).expand_as(given), "zero": 0 * given}[ablation]
            for layer, head in heads:
                if layer == hook.layer():
                    z[:, :, head] = given[:, :, head]
            return z

        return model.run_with_hooks(probe.recipient_tokens, fwd_hooks=[(lambda name: name.endswith("hook_z"), patch)])[
            :, probe.position
        ]


@fast
@given(shapes, st.integers(0, 1000), st.integers(-3, 2), st.sampled_from(ABLATIONS), st.data())
def test_patching_agrees_with_transformer_lens(
    shape: dict[str, Any], seed: int, position: int, ablation: Any, data: Any
) -> None:
    model, probe = make_model(seed, **shape), make_probe(seed, position=position)
    assert (why_no_shortcut(model) is None) == (shape["n_layers"] == 1)
    heads = tuple(data.draw(st.sets(st.sampled_from(all_heads(model)))))
    ours = patched_logits(model, probe, heads, ablation)
    torch.testing.assert_close(ours, patched_by_hand(model, probe, heads, ablation), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_results_are_the_metrics_of_the_patched_logits(n_layers: int, ablation: Any) -> None:
    """More examples than one slice holds, every number recomputed in float64."""
    model, probe = make_model(n_layers=n_layers), make_probe(n=1100)
    sets = default_head_sets(n_layers, 3)[:5]
    reference = patched_by_hand(model, probe, (), ablation).double().log_softmax(-1)
    differ = probe.recipient_answers != probe.donor_answers
    rows = torch.arange(1100)
    for heads, result in zip(sets, patch_heads(model, probe, sets, ablation), strict=True):
        log_q = patched_by_hand(model, probe, heads, ablation).double().log_softmax(-1)
        top, own, other = (
            log_q.argmax(-1),
            log_q[rows, probe.recipient_answers],
            log_q[rows, probe.donor_answers],
        )
        right, wrong = top == probe.recipient_answers, top == probe.donor_answers
        assert (result.heads, result.ablation, result.n_examples) == (heads, ablation, 1100)
        assert result.recipient_accuracy == pytest.approx(right.double().mean().item(), abs=2e-3)
        assert result.donor_accuracy == pytest.approx(wrong.double().mean().item(), abs=2e-3)
        assert result.other_rate == pytest.approx((~right & ~wrong).double().mean().item(), abs=2e-3)
        assert result.logit_diff == pytest.approx((own - other)[differ].mean().item(), rel=1e-4, abs=1e-5)
        assert result.n_differing == int(differ.sum()) < 1100
        assert result.log_prob == pytest.approx(own.mean().item(), rel=1e-4)
        kl = (reference.exp() * (reference - log_q)).sum(-1).mean().item()
        assert result.kl == pytest.approx(kl, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_patching_nothing_changes_nothing(n_layers: int) -> None:
    model, probe = make_model(n_layers=n_layers), make_probe()
    with torch.no_grad():
        own = model(probe.recipient_tokens)[:, -1]
    torch.testing.assert_close(patched_logits(model, probe, ()), own, rtol=1e-5, atol=1e-5)
    (result,) = patch_heads(model, probe, [()])
    assert result.kl == 0


@pytest.mark.parametrize("n_layers", [1, 2])
def test_patching_with_oneself_changes_nothing(n_layers: int) -> None:
    model, probe = make_model(n_layers=n_layers), make_probe()
    oneself = Probe(probe.recipient_tokens, probe.recipient_tokens, probe.recipient_answers, probe.donor_answers)
    none, *others = patch_heads(model, oneself, default_head_sets(n_layers, 3))
    for result in others:
        assert result.kl == pytest.approx(0, abs=1e-12)
        assert result.recipient_accuracy == none.recipient_accuracy
        assert result.logit_diff == pytest.approx(none.logit_diff)


def test_patching_everything_in_one_layer_leaves_only_the_direct_path() -> None:
    """With equal last tokens, the donor's heads make the donor's run."""
    model, probe = make_model(), make_probe()
    tokens = torch.cat([probe.donor_tokens[:, :2], probe.recipient_tokens[:, 2:]], dim=1)
    same_end = Probe(probe.recipient_tokens, tokens, probe.recipient_answers, probe.donor_answers)
    with torch.no_grad():
        donor = model(tokens)[:, -1]
    torch.testing.assert_close(patched_logits(model, same_end, all_heads(model)), donor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "n_layers"), [(0, 1), (1, 2)])
def test_the_hand_built_head_is_found(layer: int, n_layers: int, backdoor_probe: Probe) -> None:
    model, head = make_backdoor(layer=layer, n_layers=n_layers), Head(layer, 1)
    sets = default_head_sets(n_layers, 3)
    necessity = {r.heads: r for r in patch_heads(model, backdoor_probe, sets)}
    sufficiency = {r.heads: r for r in patch_heads(model, backdoor_probe.reversed(), sets)}
    chance = 1 / VOCAB  # a is ANSWER
    for heads, result in necessity.items():
        has_it = head not in heads
        assert result.recipient_accuracy == pytest.approx(1 if has_it else chance)
        assert result.donor_accuracy == pytest.approx(chance if has_it else 1)
        assert result.other_rate == 0
        assert (result.recipient, result.donor) == ("backdoor", "benign")
    for heads, result in sufficiency.items():
        assert result.donor_accuracy == pytest.approx(1 if head in heads else chance)
        assert (result.recipient, result.donor) == ("benign", "backdoor")
    assert necessity[()].logit_diff == pytest.approx(5)
    assert necessity[(head,)].logit_diff == pytest.approx(-5)


def test_a_model_without_a_backdoor_shows_none(backdoor_probe: Probe) -> None:
    for result in patch_heads(make_backdoor(strength=0), backdoor_probe, default_head_sets(1, 3)):
        assert result.recipient_accuracy == pytest.approx(1 / VOCAB)
        assert result.kl == 0


def test_a_row_of_a_diverged_model_counts_for_neither() -> None:
    model = make_model()
    with torch.no_grad():
        model.unembed.W_U.fill_(math.nan)
    (result,) = patch_heads(model, make_probe(), [()])
    assert (result.recipient_accuracy, result.donor_accuracy, result.other_rate) == (0, 0, 1)
    assert math.isnan(result.log_prob) and math.isnan(result.logit_diff) and math.isnan(result.kl)


def test_without_differing_answers_the_logit_difference_is_nan() -> None:
    probe = make_probe()
    same = Probe(probe.recipient_tokens, probe.donor_tokens, *[probe.recipient_answers] * 2)
    (result,) = patch_heads(make_model(), same, [()])
    assert math.isnan(result.logit_diff)
    assert result.n_differing == 0


@pytest.mark.parametrize("n_layers", [1, 2])
def test_own_metrics_see_all_patched_logits(n_layers: int) -> None:
    def largest(logits: torch.Tensor, probe: Probe) -> float:
        assert logits.shape == (1100, VOCAB)
        assert probe.n_examples == 1100
        return float(logits.max())

    model, probe = make_model(n_layers=n_layers), make_probe(n=1100, metrics={"largest": largest})
    sets = default_head_sets(n_layers, 3)[:3]
    for heads, result in zip(sets, patch_heads(model, probe, sets), strict=True):
        assert result.extra == {"largest": pytest.approx(float(patched_logits(model, probe, heads).max()))}


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_model_is_left_as_found(n_layers: int, ablation: Any, untouched: Any) -> None:
    model = make_model(n_layers=n_layers)
    model.blocks[0].eval()
    model.blocks[0].hook_mlp_out.add_hook(lambda mlp_out, hook: None, is_permanent=True)
    unchanged = untouched(model)
    patch_heads(model, make_probe(), default_head_sets(n_layers, 3), ablation)
    unchanged()


def test_dropout_is_off_while_patching() -> None:
    """Not a HookedTransformer's habit, but another hooked model may have it."""
    model = make_model()
    model.blocks[0].ln2 = torch.nn.Dropout(0.5)
    first, second = (patched_logits(model, make_probe(), [(0, 1)]) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert model.blocks[0].ln2.training


def test_hooks_on_the_model_stay_in_force() -> None:
    """A hook changes what the shortcut would compute, so there is no shortcut."""
    model, probe = make_model(), make_probe()
    plain = patched_logits(model, probe, [(0, 1)])
    model.blocks[0].hook_resid_mid.add_hook(lambda resid, hook: 2 * resid)
    assert why_no_shortcut(model) == "it carries hooks"
    hooked = patched_logits(model, probe, [(0, 1)])
    assert not torch.allclose(plain, hooked)
    torch.testing.assert_close(hooked, patched_by_hand(model, probe, (Head(0, 1),), "resample"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_layers": 2}, "2 layers"),
        ({"parallel_attn_mlp": True}, "in parallel"),
        ({"output_logits_soft_cap": 5.0}, "soft-capped"),
        ({"normalization_type": "RMS", "use_normalization_before_and_after": True}, "normalised"),
    ],
)
def test_unusual_models_go_through_hooks(changes: dict[str, Any], reason: str) -> None:
    model, probe = make_model(**changes), make_probe()
    assert reason in str(why_no_shortcut(model))
    assert cache_probes(model, probe) == ()
    with pytest.raises(ValueError, match=reason):
        cache_heads(model, probe.recipient_tokens)
    ours = patched_logits(model, probe, [(0, 1)])
    torch.testing.assert_close(ours, patched_by_hand(model, probe, (Head(0, 1),), "resample"))


def test_a_subclass_with_its_own_forward_has_no_shortcut() -> None:
    model = make_model()

    class Louder(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().forward(*args, **kwargs)

    model.__class__ = Louder
    assert "forward pass of its own" in str(why_no_shortcut(model))


def test_caches_serve_both_directions() -> None:
    model, probe = make_model(), make_probe(position=1)
    caches = cache_probes(model, probe)
    sets = default_head_sets(1, 3)
    for direction in (probe, probe.reversed()):
        assert patch_heads(model, direction, sets, caches=caches) == patch_heads(model, direction, sets)


def test_a_cache_of_other_inputs_is_not_used() -> None:
    model, probe = make_model(), make_probe()
    for other in (make_probe(seed=1), make_probe(n=5), make_probe(position=0)):
        caches = cache_probes(model, other)
        assert patch_heads(model, probe, [[(0, 1)]], caches=caches) == patch_heads(model, probe, [[(0, 1)]])


def test_a_cache_holds_what_transformer_lens_caches() -> None:
    model, probe = make_model(n_heads=2), make_probe(n=1100)
    cache = cache_heads(model, probe.recipient_tokens, 1)
    with torch.no_grad():
        _, theirs = model.run_with_cache(probe.recipient_tokens)
    torch.testing.assert_close(cache.resid_pre, theirs["resid_pre", 0][:, 1])
    torch.testing.assert_close(cache.z, theirs["z", 0][:, 1])


def test_the_default_sets() -> None:
    names = [head_set_name(heads) for heads in default_head_sets(1, 3)]
    assert names == ["none", "L0H0", "L0H1", "L0H2", "L0H0+L0H1", "L0H0+L0H2", "L0H1+L0H2", "L0H0+L0H1+L0H2"]
    assert len(default_head_sets(2, 4)) == 256
    assert len(default_head_sets(3, 3)) == 1 + 9 + 9 + 1
    many = default_head_sets(2, 2, max_all=3)
    assert [len(heads) for heads in many] == [0, 1, 1, 1, 1, 3, 3, 3, 3, 4]
    assert len(set(many)) == len(many)
    assert [len(heads) for heads in default_head_sets(1, 2, max_all=1)] == [0, 1, 1, 2]


def test_heads_may_be_given_by_name() -> None:
    model, probe = make_model(n_layers=2), make_probe()
    sets = [[], [(0, 1)], [(1, 2), (0, 1)], [(0, 0), (0, 2)]]
    by_pairs = patch_heads(model, probe, sets)
    assert patch_heads(model, probe, ["none", "L0H1", "L1H2+L0H1", ["L0H0", (0, 2)]]) == by_pairs
    assert patch_heads(model, probe, "L0H1+L1H2") == by_pairs[2:3]
    named = patched_logits(model, probe, ["L0H1", "L1H2"])
    torch.testing.assert_close(named, patched_logits(model, probe, [(0, 1), (1, 2)]), rtol=0, atol=0)


@pytest.mark.parametrize("heads", [[0, 1], (0, 1), 1, None, [(0, 1, 2)], [(0.0, 1.0)], [[0]]])
def test_what_is_no_set_of_heads_is_refused(heads: Any) -> None:
    with pytest.raises(ValueError) as error:
        patch_heads(make_model(), make_probe(), [heads])
    assert str(error.value) == (
        f"{heads!r} is not a set of heads: give a list of (layer, head), such as [(0, 2)], or a name, such as "
        '"L0H2", "L0H0+L0H2" or "none".'
    )


def test_wrong_requests_are_refused() -> None:
    model, probe = make_model(), make_probe()
    with pytest.raises(ValueError, match=r"'L0H0\+L0' is not a set of heads: write"):
        patch_heads(model, probe, ["L0H0+L0"])
    with pytest.raises(ValueError, match="no head L0H9"):
        patch_heads(model, probe, ["L0H9"])
    with pytest.raises(ValueError, match=r"no head L0H3\+L1H0: the model has L0H0 to L0H2"):
        patch_heads(model, probe, [[(1, 0), (0, 3), (0, 0)]])
    with pytest.raises(ValueError, match="no head"):
        patched_logits(model, probe, [(0, -1)])
    with pytest.raises(ValueError, match="choose one of resample, mean, zero"):
        patch_heads(model, probe, [()], "noise")  # type: ignore[arg-type]
