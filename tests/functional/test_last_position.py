"""The last-position form against HookedTransformer itself, in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformer_lens import HookedTransformer, HookedTransformerConfig

from lit_backdoor.functional import row_threads
from lit_backdoor.functional.last_position import (
    last_position_attention,
    last_position_logits,
    why_not_exact,
)
from lit_backdoor.functional.last_position_loss import last_position_loss
from lit_backdoor.functional.token_layout import TokenLayout
from lit_backdoor.model import ACT_FNS, build_model
from lit_backdoor.module import BackdoorModule
from lit_backdoor.task import Task, all_examples


def random_model(seed: int, **options: object) -> HookedTransformer:
    model = build_model(**{"dtype": torch.float64, "train_biases": True, **options})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.5
    return model


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-9)).item()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.integers(2, 9),
    st.lists(st.integers(1, 2), max_size=1),
    st.integers(0, 2),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 20),
    st.sampled_from(ACT_FNS),
    st.booleans(),
    st.integers(1, 70),
    st.sampled_from([1, 2]),
)
def test_logits_loss_and_gradients_equal_the_hooked_transformer(
    p0: int, others: list[int], position: int, n_heads: int, d_head: int, d_model: int, d_mlp: int, act_fn: str,
    biases: bool, block: int, threads: int,
) -> None:  # fmt: skip
    model = random_model(
        p0, d_vocab=p0, n_heads=n_heads, d_head=d_head, d_model=d_model, d_mlp=d_mlp, act_fn=act_fn, train_biases=biases
    )
    examples = all_examples(Task((p0, *others), position))
    assert why_not_exact(model) is None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected_logits, cache = model.run_with_cache(examples.tokens)
    expected_logits = expected_logits[:, -1]
    expected_loss = F.cross_entropy(expected_logits, examples.answers)
    expected_gradients = torch.autograd.grad(expected_loss, trained)

    torch.testing.assert_close(last_position_logits(model, examples.tokens), expected_logits)
    resid_pre, pattern, z = last_position_attention(model, examples.tokens)
    torch.testing.assert_close(resid_pre, cache["blocks.0.hook_resid_pre"][:, -1])
    torch.testing.assert_close(pattern, cache["blocks.0.attn.hook_pattern"][:, :, -1])
    torch.testing.assert_close(z, cache["blocks.0.attn.hook_z"][:, -1])

    old = row_threads.BLOCK_ROWS
    row_threads.BLOCK_ROWS = block
    row_threads.set_row_threads(threads)
    try:
        layout = TokenLayout.of(examples.tokens, model)
        loss, logits = last_position_loss(model, layout, examples.answers)
    finally:
        row_threads.BLOCK_ROWS = old
        row_threads.set_row_threads(None)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(logits, expected_logits)
    for found, expected in zip(torch.autograd.grad(loss, trained), expected_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    by_autograd = F.cross_entropy(last_position_logits(model, examples.tokens), examples.answers)
    for found, expected in zip(torch.autograd.grad(by_autograd, trained), expected_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_the_real_size_in_float32() -> None:
    torch.manual_seed(0)
    model = build_model(113)
    tokens = all_examples(Task((113, 7))).tokens[::7]
    assert relative_error(last_position_logits(model, tokens), model(tokens)[:, -1]) < 2e-6


def test_extreme_logits_stay_finite() -> None:
    model = random_model(0, d_vocab=7)
    model.unembed.W_U.data *= 1e4
    examples = all_examples(Task((7, 1)))
    loss, _ = last_position_loss(model, TokenLayout.of(examples.tokens, model), examples.answers)
    torch.testing.assert_close(loss, F.cross_entropy(model(examples.tokens)[:, -1], examples.answers))


@pytest.mark.parametrize("unknown", [-1, 8])
def test_a_token_that_the_model_does_not_know_is_refused(unknown: int) -> None:
    """It would be read from the rows of another position."""
    model = random_model(0, d_vocab=8)
    tokens = torch.tensor([[1, 2, 7], [unknown, 2, 7]])
    with pytest.raises(ValueError, match=f"tokens: {unknown} is not in the model's vocabulary; allowed: 0 to 7"):
        last_position_logits(model, tokens)


def hooked(**options: object) -> HookedTransformer:
    settings = dict(n_layers=1, n_heads=2, d_model=8, d_head=4, d_mlp=8, n_ctx=3, d_vocab=5, act_fn="relu")
    return HookedTransformer(HookedTransformerConfig(**{**settings, "normalization_type": None, **options}))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n_layers": 2}, "more than one layer"),
        ({"normalization_type": "LN"}, "normalisation layers"),
        ({"attention_dir": "bidirectional"}, "not causal"),
        ({"attn_only": True, "d_mlp": None}, "MLP"),
        ({"gated_mlp": True}, "MLP"),
        ({"positional_embedding_type": "rotary", "rotary_dim": 4}, "positional"),
        ({"parallel_attn_mlp": True}, "parallel"),
        ({"attn_scores_soft_cap": 5.0}, "soft cap"),
        ({"use_qk_norm": True}, "unusual attention"),
    ],
)
def test_it_is_refused_where_it_is_not_exact(options: dict[str, object], reason: str) -> None:
    assert reason in (why_not_exact(hooked(**options)) or "")


def test_it_is_refused_while_hooks_are_on_the_model() -> None:
    model = hooked()
    assert why_not_exact(model) is None
    model.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    assert why_not_exact(model) == "hooks on the model"
    model.reset_hooks()
    assert why_not_exact(model) is None
    assert why_not_exact(torch.nn.Linear(2, 2)) == "not a HookedTransformer"


class Louder(HookedTransformer):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 3 * super().forward(*args, **kwargs)


class OwnPart(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0 * x


def test_what_pytorch_or_a_class_changes_is_not_passed_over() -> None:
    """Hooks of PyTorch's, a forward pass of one's own, and a part put in another's place."""
    tokens = torch.tensor([[1, 2, 4], [0, 3, 4]])
    module = BackdoorModule(moduli=[5, 1], d_model=8, d_head=4, n_heads=2, d_mlp=8)
    for register in (
        lambda model: model.blocks[0].mlp.register_forward_hook(lambda mlp, args, out: 0 * out),
        lambda model: model.unembed.register_forward_pre_hook(lambda unembed, args: (3 * args[0],)),
    ):
        handle = register(module.model)
        assert why_not_exact(module.model) == "hooks on the model" and not module.uses_last_position_form
        torch.testing.assert_close(module(tokens), module.model(tokens)[:, -1], rtol=0, atol=0)
        handle.remove()
        assert why_not_exact(module.model) is None
    handle = module.model.embed.register_full_backward_hook(lambda embed, given, got: None)
    assert why_not_exact(module.model) == "hooks on the model"
    handle.remove()
    model = hooked()
    assert why_not_exact(Louder(model.cfg)) == "a forward pass of its own"
    model.blocks[0].mlp = OwnPart()
    assert why_not_exact(model) == "a module of its own"


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_threads, "BLOCK_ROWS", 20)
    model = random_model(0, d_vocab=9, d_mlp=16, d_model=16, dtype=torch.float32)
    examples = all_examples(Task((9, 3)))
    layout = TokenLayout.of(examples.tokens, model)
    results = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(row_threads, "_threads", threads)
        loss, logits = last_position_loss(model, layout, examples.answers)
        with torch.no_grad():
            alone = last_position_logits(model, examples.tokens)
        results.append([loss.detach(), logits, alone, *torch.autograd.grad(loss, list(model.parameters()))])
    assert len(layout.blocks) == 9
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert torch.equal(ours, theirs)
