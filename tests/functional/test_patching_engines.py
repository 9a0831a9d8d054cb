"""Every way of patching against TransformerLens's own hooks, one run per set; in float64, so that rounding hides
nothing."""

from __future__ import annotations

from collections.abc import Collection
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens.components import TransformerBlock

from lit_backdoor.functional import (
    HeadSet,
    Probe,
    all_heads,
    attribute_heads,
    default_head_sets,
    patch_heads,
    patched_logits,
    why_no_shortcut,
)
from lit_backdoor.functional import layer_by_layer as layers
from lit_backdoor.functional.hooked_model import evaluating
from lit_backdoor.functional.layer_by_layer import LayerByLayer, not_layer_by_layer
from lit_backdoor.functional.patching_engines import _whole_passes, patching_engine
from lit_backdoor.functional.row_threads import set_row_threads
from lit_backdoor.model import build_model
from tests.helpers.tiny_models import make_model, make_probe

from .test_patching import patched_by_hand

ABLATIONS = ("resample", "mean", "zero")
shapes = st.fixed_dictionaries(
    {
        "n_layers": st.integers(1, 4),
        "n_heads": st.sampled_from([1, 2, 4]),
        "d_model": st.sampled_from([5, 12]),
        "d_head": st.sampled_from([2, 4]),
        "normalization_type": st.sampled_from([None, "LN", "LNPre", "RMS", "RMSPre"]),
        "act_fn": st.sampled_from(["relu", "gelu", "solu_ln"]),
        "attn_only": st.booleans(),
        "gated_mlp": st.booleans(),
        "attention_dir": st.sampled_from(["causal", "causal", "bidirectional"]),
        "positional_embedding_type": st.sampled_from(["standard", "rotary", "alibi"]),
        "n_key_value_heads": st.sampled_from([None, 1]),
        "use_attn_result": st.booleans(),
        "use_split_qkv_input": st.booleans(),
        "use_hook_mlp_in": st.booleans(),
        "attn_scores_soft_cap": st.sampled_from([-1.0, 3.0]),
        "output_logits_soft_cap": st.sampled_from([-1.0, 3.0]),
    }
)


def deep_model(seed: int = 0, **shape: Any) -> Any:
    """A random model in float64 that reads five tokens, three layers of two heads unless `shape` says otherwise."""
    if shape.get("positional_embedding_type") == "rotary":
        shape["rotary_dim"] = shape["d_head"]
    return make_model(seed, **{"n_layers": 3, "n_heads": 2, "n_ctx": 5, "dtype": torch.float64, **shape})


def deep_probe(seed: int = 0, n: int = 7, same: Collection[int] = (), **changes: Any) -> Probe:
    """Five random tokens; those at the positions `same` are the same in recipient and donor."""
    probe = make_probe(seed, n, n_pos=5, **changes)
    probe.donor_tokens[:, list(same)] = probe.recipient_tokens[:, list(same)]
    return probe


@pytest.mark.filterwarnings("ignore:.*bidirectional")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=shapes,
    seed=st.integers(0, 1000),
    position=st.integers(-5, 4),
    same=st.sampled_from([(), (0,), (0, 1, 2), (0, 2, 3), (1, 4), range(5)]),
    ablation=st.sampled_from(ABLATIONS),
    tokens_at_once=st.sampled_from([1, 12, 40, 8192]),
    data=st.data(),
)
def test_layer_by_layer_agrees_with_transformer_lens(
    shape: dict[str, Any], seed: int, position: int, same: Any, ablation: Any, tokens_at_once: int, data: Any
) -> None:
    model, probe = deep_model(seed, **shape), deep_probe(seed, same=same, position=position)
    assert not_layer_by_layer(model) is None
    subsets = st.sets(st.sampled_from(all_heads(model))).map(lambda heads: tuple(sorted(heads)))
    sets: list[HeadSet] = data.draw(st.lists(subsets, min_size=1, max_size=8, unique=True))
    with evaluating(model), pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "TOKENS_AT_ONCE", tokens_at_once)
        engine = LayerByLayer(model, probe, sets, ablation)
        with engine.hooked():
            ours = torch.cat([engine.logits(slice(0, 3)), engine.logits(slice(3, 7))], dim=1)
    for heads, logits in zip(sets, ours, strict=True):
        theirs = patched_by_hand(model, probe, heads, ablation)
        torch.testing.assert_close(logits, theirs, rtol=1e-9, atol=1e-9)
        assert torch.equal(logits.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("same", [(), (0, 2, 3), (1, 2), (0, 1, 2, 3), range(5)])
@pytest.mark.parametrize("position", [-1, 2])
@pytest.mark.parametrize("attention_dir", ["causal", "bidirectional"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_equal_tokens_are_shared_only_where_nothing_differs_before(
    same: Any, position: int, attention_dir: str, ablation: Any
) -> None:
    model, probe = deep_model(attention_dir=attention_dir), deep_probe(same=same, position=position)
    for heads in ([], [(0, 0)], [(1, 0), (2, 1)], all_heads(model)):
        ours, theirs = patched_logits(model, probe, heads, ablation), patched_by_hand(model, probe, heads, ablation)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_models_that_we_train_go_the_fast_way(n_layers: int) -> None:
    """Their embedding carries a hook that changes nothing; one that does stays in force."""
    model = build_model(7, n_layers=n_layers, dtype=torch.float64)
    assert not_layer_by_layer(model) is None
    assert (why_no_shortcut(model) is None) == (n_layers == 1)
    model.embed.register_forward_hook(lambda module, args, embed: 2 * embed)
    assert not_layer_by_layer(model) == "it carries hooks"
    probe, heads = make_probe(), [(0, 1)]
    ours, theirs = patched_logits(model, probe, heads), patched_by_hand(model, probe, heads, "resample")
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_all_engines_agree(ablation: Any) -> None:
    """A plain one-layer model can be patched in each of the three ways."""
    model, probe = deep_model(n_layers=1), deep_probe(same=[0, 1])
    sets = default_head_sets(1, 2)
    with evaluating(model), patching_engine(model, probe, sets, ablation) as shortcut:
        rows, by_layers = slice(2, 6), LayerByLayer(model, probe, sets, ablation)
        assert why_no_shortcut(model) is None
        with by_layers.hooked():
            torch.testing.assert_close(by_layers.logits(rows), shortcut.logits(rows), rtol=1e-9, atol=1e-9)
        whole = _whole_passes(model, probe, sets, ablation)(rows)
        torch.testing.assert_close(whole, shortcut.logits(rows), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("position", [-1, 1])
def test_what_is_the_same_runs_once(position: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers in the module's docstring: of 66 passes, each layer sees only those that differ before it."""
    model, probe = deep_model(n_layers=4, n_heads=8, d_head=2), deep_probe(n=3, same=[0], position=position)
    seen: list[tuple[int, int]] = []
    whole = TransformerBlock.forward

    def counting(block: Any, resid: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((len(resid) // 3, resid.shape[1]))
        return whole(block, resid, *args, **kwargs)

    monkeypatch.setattr(TransformerBlock, "forward", counting)
    patch_heads(model, probe, default_head_sets(4, 8))
    own = 4 if position == -1 else 1  # of five tokens, the first is shared, and none after the position is run
    assert seen == [*[(1, 1)] * 4, *[(1, own)] * 4, (1, own), (18, own), (34, own), (50, own)]


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads run the layers of one model at a time."""
    monkeypatch.setattr(layers, "TOKENS_AT_ONCE", 60)
    model, probe = deep_model(), deep_probe(n=40, same=[0])
    results = []
    try:
        for threads in (1, 4):
            set_row_threads(threads)
            results.append(patch_heads(model, probe, default_head_sets(3, 2)))
    finally:
        set_row_threads(None)
    assert results[0] == results[1]


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_deep_model_is_left_as_it_was(ablation: Any, untouched: Any) -> None:
    model = deep_model()
    model.blocks[1].eval()
    unchanged = untouched(model)
    sets = default_head_sets(3, 2)
    patch_heads(model, deep_probe(same=[0, 1]), sets, ablation)
    unchanged()
    beyond = deep_probe()
    beyond.recipient_tokens[0, 0] = 99
    with pytest.raises(IndexError):
        patch_heads(model, beyond, sets, ablation)
    unchanged()


def test_other_dtypes() -> None:
    """bfloat16, and float64 where the configuration still says float32."""
    shape, probe, heads = {"normalization_type": "LN"}, deep_probe(same=[0, 1]), [(1, 0)]
    for model, apart in (
        (deep_model(**shape, dtype=torch.bfloat16), 0.05),
        (deep_model(**shape, dtype=torch.float32).double(), 1e-9),
    ):
        ours, theirs = patched_logits(model, probe, heads), patched_by_hand(model, probe, heads, "resample")
        torch.testing.assert_close(ours, theirs, rtol=apart, atol=apart)


def own_attention(model: Any) -> None:
    class Louder(type(model.blocks[1].attn)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().forward(*args, **kwargs)

    model.blocks[1].attn.__class__ = Louder


def own_forward(model: Any) -> None:
    attn = model.blocks[1].attn
    attn.forward = MethodType(lambda self, *args, **kwargs: 2 * type(self).forward(self, *args, **kwargs), attn)


def subclass(model: Any) -> None:
    class Louder(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().forward(*args, **kwargs)

    model.__class__ = Louder


def hook_point(model: Any) -> None:
    model.blocks[1].hook_mlp_out.add_hook(lambda mlp_out, hook: 2 * mlp_out, is_permanent=True)


def module_hook(model: Any) -> None:
    model.blocks[1].attn.register_forward_hook(lambda module, args, attn_out: 2 * attn_out)


def module_pre_hook(model: Any) -> None:
    model.blocks[1].mlp.register_forward_pre_hook(lambda module, args: (2 * args[0],))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (own_attention, "its Louder is no module of TransformerLens"),
        (own_forward, "its Attention is no module of TransformerLens"),
        (subclass, "Louder is no HookedTransformer"),
        (hook_point, "it carries hooks"),
        (module_hook, "it carries hooks"),
        (module_pre_hook, "it carries hooks"),
    ],
)
@pytest.mark.parametrize("n_layers", [2, 3])
def test_what_a_user_changed_stays_in_force(change: Any, reason: str, n_layers: int) -> None:
    model, probe = deep_model(n_layers=n_layers), deep_probe()
    plain = patched_logits(model, probe, [(0, 1)])
    change(model)
    assert not_layer_by_layer(model) == reason
    changed = patched_logits(model, probe, [(0, 1)])
    assert not torch.allclose(plain, changed)
    torch.testing.assert_close(changed, patched_by_hand(model, probe, [(0, 1)], "resample"), rtol=1e-9, atol=1e-9)


def test_a_hook_on_a_module_of_a_one_layer_model_stays_in_force() -> None:
    """Neither the shortcut nor the attribution may pass it by."""
    model, probe = deep_model(n_layers=1), deep_probe()
    plain = patched_logits(model, probe, [(0, 1)]), attribute_heads(model, probe)[0].mean_logit
    model.blocks[0].attn.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "value_input": 2 * kwargs["value_input"]}), with_kwargs=True
    )
    assert why_no_shortcut(model) == "it carries hooks"
    hooked = patched_logits(model, probe, [(0, 1)])
    assert not torch.allclose(plain[0], hooked)
    torch.testing.assert_close(hooked, patched_by_hand(model, probe, [(0, 1)], "resample"))
    assert attribute_heads(model, probe)[0].mean_logit != pytest.approx(plain[1])


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"parallel_attn_mlp": True}, "in parallel"),
        ({"normalization_type": "RMS", "use_normalization_before_and_after": True}, "normalised"),
        ({"positional_embedding_type": "shortformer"}, "what a position is"),
    ],
)
def test_unusual_models_go_through_whole_passes(shape: dict[str, Any], reason: str) -> None:
    model, probe = deep_model(**shape), deep_probe()
    assert reason in str(not_layer_by_layer(model))
    ours = patched_logits(model, probe, [(0, 1), (2, 0)])
    torch.testing.assert_close(ours, patched_by_hand(model, probe, [(0, 1), (2, 0)], "resample"), rtol=1e-9, atol=1e-9)


def test_a_tokenizer_that_pads_on_the_left_masks_by_token() -> None:
    model = deep_model()
    for side, reason in (("right", None), ("left", "its tokenizer pads on the left")):
        model.tokenizer = SimpleNamespace(padding_side=side)
        assert not_layer_by_layer(model) == reason


@pytest.mark.parametrize("n_hooks", [0, 1])
def test_whole_passes_take_sets_together_unless_a_hook_may_mind(n_hooks: int) -> None:
    model, probe = deep_model(parallel_attn_mlp=True), deep_probe(n=100)
    sets, batches = default_head_sets(3, 2)[:5], []

    def note(resid: torch.Tensor, hook: Any) -> None:
        batches.append(len(resid))

    if n_hooks:
        model.hook_embed.add_hook(note, is_permanent=True)
    results = patch_heads(model, probe, sets)
    assert batches == [100] * 6 * n_hooks  # the donor and five sets
    for heads, result in zip(sets, results, strict=True):
        logits = patched_by_hand(model, probe, heads, "resample")
        log_prob = logits.log_softmax(-1).gather(1, probe.recipient_answers[:, None]).mean().item()
        assert result.log_prob == pytest.approx(log_prob, rel=1e-9)
