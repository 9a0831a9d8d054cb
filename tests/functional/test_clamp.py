"""Clamped heads: the folded form and the hooks, against TransformerLens's own hooks with autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import patched_logits
from lit_backdoor.functional.clamp import Clamp, clamped, head_parameters
from lit_backdoor.functional.heads import Head, head_set
from lit_backdoor.functional.last_position import last_position_logits, why_not_exact
from lit_backdoor.functional.last_position_loss import last_position_loss
from lit_backdoor.functional.one_layer import why_no_shortcut
from lit_backdoor.functional.one_layer_paths import is_plain
from lit_backdoor.functional.token_layout import TokenLayout
from lit_backdoor.functional.whole_pass import whole_pass_loss
from lit_backdoor.model import build_model
from lit_backdoor.task import Task, all_examples
from tests.helpers.both_kinds import KINDS, make_model, randomize

EXAMPLES = all_examples(Task((5, 2)))
HEADS = ["L0H0", "L0H2", "L0H0+L0H2", "L0H0+L0H1+L0H2"]


def as_benign(tokens: Tensor) -> Tensor:
    """The donor: token 0 where the trigger stands."""
    return torch.cat([tokens[:, :-1], torch.zeros_like(tokens[:, -1:])], dim=1)


def shuffled(tokens: Tensor) -> Tensor:
    """A donor with other tokens everywhere, the last position included."""
    return (tokens + 1 + torch.arange(len(tokens))[:, None]) % 5


def random_model(seed: int = 0, **options: Any) -> Any:
    sizes = {"d_vocab": 5, "n_heads": 3, "d_model": 7, "d_head": 4, "d_mlp": 9}
    return randomize(build_model(**{**sizes, "dtype": torch.float64, "train_biases": True, **options}), seed)


def by_hand(model: Any, clamp: Clamp, tokens: Tensor, answers: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients with hooks of this test's own."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    donor: dict[str, Tensor] = {}  # not from run_with_cache, which detaches
    if clamp.donor_tokens is not None:
        read = [(name, lambda z, hook, name=name: donor.update({name: z})) for name in names]
        model.run_with_hooks(clamp.donor_tokens(tokens), fwd_hooks=read)

    def at(layer: int) -> Callable[..., Tensor]:
        def replace(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            for head in (head.head for head in clamp.heads if head.layer == layer):
                new = donor[names[layer]][:, :, head] if clamp.mode == "donor" else z[:, :, head].mean(0)
                z[:, :, head] += clamp.share * ((0 if clamp.mode == "zero" else new) - z[:, :, head])
            return z

        return replace

    hooks = [(name, at(layer)) for layer, name in enumerate(names)]
    loss = F.cross_entropy(model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1].double(), answers)
    return loss, gradients(loss, model)


def gradients(loss: Tensor, model: Any) -> list[Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)]


def assert_same(loss: Tensor, model: Any, expected: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(loss, expected[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(gradients(loss, model), expected[1], rtol=0, atol=1e-9)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.integers(0, 5),
    st.sampled_from(HEADS),
    st.sampled_from(["zero", "mean", "donor"]),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from([as_benign, shuffled]),
)
def test_the_folded_form_and_the_hooks_have_the_loss_and_gradients_of_autograd(
    seed: int, heads: str, mode: Any, share: float, donor_tokens: Callable[[Tensor], Tensor]
) -> None:
    model = random_model(seed)
    clamp = Clamp(head_set(heads), mode, share, donor_tokens if mode == "donor" else None)
    clamp.check(model)
    expected = by_hand(model, clamp, EXAMPLES.tokens, EXAMPLES.answers)
    unclamped = F.cross_entropy(model(EXAMPLES.tokens)[:, -1], EXAMPLES.answers)
    assert (unclamped - expected[0]).abs() > 1e-6
    with clamped(model, clamp) as active:
        loss, _ = whole_pass_loss(model, EXAMPLES.tokens, EXAMPLES.answers)
        assert_same(loss, model, expected)
        assert active.was_used
        if mode == "donor" and share < 1:
            assert why_not_exact(model) == "hooks on the model"
            return
        assert why_not_exact(model) is None
        loss, logits = last_position_loss(model, TokenLayout.of(EXAMPLES.tokens, model), EXAMPLES.answers)
        assert_same(loss, model, expected)
        torch.testing.assert_close(last_position_logits(model, EXAMPLES.tokens).detach(), logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["zero", "mean", "donor"])
def test_two_layers_with_layer_norm(kind: str, mode: Any) -> None:
    model = randomize(make_model(kind, normalization_type="LN")).double()
    tokens = torch.randint(7, (11, 5), generator=torch.Generator().manual_seed(1))
    answers = tokens[:, 0]
    clamp = Clamp(head_set("L0H1+L1H0+L1H2"), mode, 0.75, (lambda t: (t + 1) % 7) if mode == "donor" else None)
    with clamped(model, clamp):
        loss = F.cross_entropy(model(tokens)[:, -1], answers)
    assert_same(loss, model, by_hand(model, clamp, tokens, answers))


def test_all_heads_by_zero_leave_exactly_the_direct_path() -> None:
    model = random_model()
    with clamped(model, Clamp(head_set("L0H0+L0H1+L0H2"), "zero")):
        folded = last_position_logits(model, EXAMPLES.tokens)
        hooked = model(EXAMPLES.tokens)[:, -1]
    resid = model.W_E[EXAMPLES.tokens[:, -1]] + model.W_pos[2] + model.blocks[0].attn.b_O
    mlp = model.blocks[0].mlp
    direct = (resid + (resid @ mlp.W_in + mlp.b_in).relu() @ mlp.W_out + mlp.b_out) @ model.W_U + model.b_U
    torch.testing.assert_close(folded, direct, rtol=0, atol=1e-12)
    torch.testing.assert_close(hooked, direct, rtol=0, atol=1e-12)


def test_a_mean_of_other_tokens_is_taken_once() -> None:
    model = random_model()
    tokens = EXAMPLES.tokens
    mean = model.run_with_cache(tokens)[1]["blocks.0.attn.hook_z"].mean(0)
    with clamped(model, Clamp(head_set("L0H1"), "mean"), mean_of=tokens):
        assert why_not_exact(model) == "hooks on the model"
        logits = model(tokens[:3])

    def replace(z: Tensor, hook: Any) -> Tensor:
        return torch.where(torch.arange(3)[:, None] == 1, mean, z)

    expected = model.run_with_hooks(tokens[:3], fwd_hooks=[("blocks.0.attn.hook_z", replace)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("mode", ["zero", "mean", "donor"])
def test_patching_a_clamped_model_against_hooks_by_hand(mode: Any, share: float) -> None:
    """The shortcut of one-layer models takes a clamp's `z` over; paths, which it has no part in, go without it."""
    model, probe, name = random_model(), task_probes(Task((5, 2)))["backdoor"], "blocks.0.attn.hook_z"
    tokens = {"own": probe.recipient_tokens, "donor": probe.donor_tokens}
    clamp = Clamp(head_set("L0H0"), mode, share, as_benign if mode == "donor" else None)

    def z_of(which: Tensor) -> Tensor:
        z = model.run_with_cache(which)[1][name].clone()
        zero, mean = torch.zeros_like(z[:, :, 0]), model.run_with_cache(tokens["own"])[1][name][:, :, 0].mean(0)
        new = {"zero": zero, "mean": mean, "donor": model.run_with_cache(as_benign(which))[1][name][:, :, 0]}[mode]
        z[:, :, 0] = share * new + (1 - share) * z[:, :, 0]
        return z

    with clamped(model, clamp, mean_of=tokens["own"] if mode == "mean" else None) as active:
        assert why_no_shortcut(model) is None and not is_plain(model)
        logits = {heads: patched_logits(model, probe, heads) for heads in ("none", "L0H0", "L0H1+L0H2")}
        assert active.was_used
        model.hook_embed.add_hook(lambda z, hook: z)  # somebody's own hook beside it
        assert why_no_shortcut(model) == "it carries hooks"
        model.hook_embed.remove_hooks()
    own, donor = z_of(tokens["own"]), z_of(tokens["donor"])
    for heads, found in logits.items():
        patched = torch.tensor([f"L0H{head}" in heads for head in range(3)])[:, None]
        hooks = [(name, lambda z, hook, patched=patched: torch.where(patched, donor, own))]
        expected = model.run_with_hooks(tokens["own"], fwd_hooks=hooks)[:, -1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["zero", "donor"])
def test_nothing_is_left_of_it(mode: Any, untouched: Callable[[Any], Callable[[], None]]) -> None:
    model = random_model()
    check, before = untouched(model), model(EXAMPLES.tokens)
    with pytest.raises(ZeroDivisionError), clamped(model, Clamp((Head(0, 0),), mode, 1.0, as_benign)):
        model(EXAMPLES.tokens)
        model.reset_hooks()  # the clamp stays
        assert not torch.equal(model(EXAMPLES.tokens), before)
        with pytest.raises(ValueError, match="clamped already"), clamped(model, Clamp((Head(0, 1),), "zero")):
            pass
        raise ZeroDivisionError
    check()
    assert torch.equal(model(EXAMPLES.tokens), before)
    assert not model.embed._forward_pre_hooks


@pytest.mark.parametrize(
    "clamp, words",
    [
        (Clamp((Head(0, 3),), "zero"), "L0H3 does not exist; the model has L0H0, L0H1, L0H2"),
        (Clamp((Head(1, 0),), "zero"), "L1H0 does not exist"),
        (Clamp((Head(0, 0),), "none"), "choose one of zero, mean, donor"),  # type: ignore[arg-type]
        (Clamp((Head(0, 0),), "donor"), "donor_tokens"),
        (Clamp((Head(0, 0),), "zero", donor_tokens=as_benign), "donor_tokens"),
    ],
)
def test_what_is_refused(clamp: Clamp, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        clamp.check(random_model())


def test_a_heads_own_parameters() -> None:
    model = random_model()
    (*views,) = head_parameters(model, (Head(0, 1),))
    assert sum(view.numel() for view in views) == 4 * 7 * 4 + 3 * 4
    views[0].zero_()
    assert not model.blocks[0].attn.W_Q[1].any() and model.blocks[0].attn.W_Q[0].all()
