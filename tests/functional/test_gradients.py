from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformer_lens import HookedTransformer

from lit_backdoor.functional import Head, all_heads, head_gradients
from lit_backdoor.functional.gradients import ROWS
from tests.helpers.tiny_models import VOCAB, make_model

shapes = st.fixed_dictionaries(
    {
        "n_layers": st.integers(1, 2),
        "n_heads": st.integers(1, 3),
        "normalization_type": st.sampled_from([None, "LN"]),
        "act_fn": st.sampled_from(["relu", "gelu"]),
    }
)
fast = settings(max_examples=15, deadline=None, derandomize=True)
NAMES = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")


def examples(seed: int, n: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, answers, rules 0 and 2."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (n, 3), generator=generator)
    answers = torch.randint(VOCAB, (n,), generator=generator)
    return tokens, answers, 2 * torch.randint(2, (n,), generator=generator)


def by_backward(
    model: HookedTransformer, tokens: torch.Tensor, answers: torch.Tensor, rows: torch.Tensor, position: int
) -> dict[Head, torch.Tensor]:
    """Gradient of the loss that some rows add to the mean over all, by head, through TransformerLens's own pass."""
    model.zero_grad()
    losses = F.cross_entropy(model(tokens)[:, position].double(), answers, reduction="none")
    (losses[rows].sum() / len(tokens)).backward()
    gradients = {}
    for head in all_heads(model):
        attn = model.blocks[head.layer].attn
        parts = [getattr(attn, name).grad[head.head].flatten() for name in NAMES if getattr(attn, name).requires_grad]
        gradients[head] = torch.cat(parts).double()
    model.zero_grad()
    return gradients


@fast
@given(shapes, st.integers(0, 1000), st.integers(-3, 2), st.booleans())
def test_against_backward(shape: dict[str, Any], seed: int, position: int, frozen_biases: bool) -> None:
    model = make_model(seed, **shape)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen_biases and "blocks.0" in name and ".b_" in name))
    tokens, answers, rules = examples(seed)
    first, second, whole = (
        by_backward(model, tokens, answers, rows, position) for rows in (rules == 0, rules == 2, rules >= 0)
    )
    results = head_gradients(model, tokens, answers, rules, position)
    assert [result.head for result in results] == list(all_heads(model))
    for result in results:
        own = (first[result.head], second[result.head])
        close = {"rel": 1e-3, "abs": 1e-6}
        norms = [gradient.norm().item() for gradient in own]
        assert result.norms == {0: pytest.approx(norms[0], **close), 2: pytest.approx(norms[1], **close)}
        assert sum(result.shares.values()) == pytest.approx(1)
        assert result.shares[0] == pytest.approx(norms[0] / sum(norms), **close)
        cosine = F.cosine_similarity(*own, dim=0).item()
        assert result.cosines == {(0, 2): pytest.approx(cosine, abs=1e-3)}
        # The two add up to the gradient that the optimizer sees.
        squared = norms[0] ** 2 + norms[1] ** 2 + 2 * result.cosines[0, 2] * norms[0] * norms[1]
        assert whole[result.head].norm().item() == pytest.approx(math.sqrt(max(squared, 0)), rel=1e-2, abs=1e-4)


def test_the_same_examples_pull_the_same_way() -> None:
    tokens, answers, _ = examples(0)
    twice = (tokens.repeat(2, 1), answers.repeat(2), torch.arange(2).repeat_interleave(40))
    for result in head_gradients(make_model(), *twice):
        assert result.shares == {0: pytest.approx(0.5), 1: pytest.approx(0.5)}
        assert result.cosines[0, 1] == pytest.approx(1)


def test_two_answers_to_the_same_examples_undo_each_other() -> None:
    """Two tokens out, and as sure of one as of the other: one answer's gradient is minus the other's."""
    model = make_model(d_vocab_out=2)
    with torch.no_grad():
        model.unembed.W_U[:] = torch.tensor([1.0, 1.0])
        model.unembed.W_U[0] = torch.tensor([1e-4, -1e-4])
        model.unembed.b_U.zero_()
    tokens, _, _ = examples(0)
    rules = torch.arange(2).repeat_interleave(40)
    for result in head_gradients(model, tokens.repeat(2, 1), rules, rules):
        assert result.cosines[0, 1] == pytest.approx(-1, abs=1e-3)
        assert result.shares[0] == pytest.approx(0.5, abs=1e-3)


def test_more_rows_than_are_kept_at_a_time() -> None:
    tokens, answers, rules = examples(1, n=ROWS + 300)
    model = make_model()
    expected = by_backward(model, tokens, answers, rules == 0, -1)
    only_one = torch.zeros_like(rules)
    for result in head_gradients(model, tokens, answers, rules):
        assert result.norms[0] == pytest.approx(expected[result.head].norm().item(), rel=1e-3)
    whole = by_backward(model, tokens, answers, rules >= 0, -1)
    for result in head_gradients(model, tokens, answers, only_one):
        assert result.norms == {0: pytest.approx(whole[result.head].norm().item(), rel=1e-3)}
        assert (result.shares, result.cosines) == ({0: 1}, {})


def test_no_gradient_is_no_direction() -> None:
    model = make_model()
    with torch.no_grad():
        model.unembed.W_U.zero_()
    for result in head_gradients(model, *examples(0)):
        assert result.norms == {0: 0, 2: 0}
        assert math.isnan(result.shares[0]) and math.isnan(result.shares[2]) and math.isnan(result.cosines[0, 2])


def test_what_is_refused() -> None:
    tokens, answers, rules = examples(0)
    with pytest.raises(ValueError, match="tokens, answers and rules have 40, 39 and 40 rows"):
        head_gradients(make_model(), tokens, answers[1:], rules)
    with pytest.raises(ValueError, match="0, 0 and 0 rows"):
        head_gradients(make_model(), tokens[:0], answers[:0], rules[:0])
    with pytest.raises(ValueError, match=r"blocks.0.attn.W_K of HookedTransformer is no parameter of 4 heads"):
        head_gradients(make_model(n_heads=4, n_key_value_heads=2), tokens, answers, rules)
    frozen = make_model()
    frozen.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of L0H0 is trained"):
        head_gradients(frozen, tokens, answers, rules)


@pytest.mark.parametrize("shape", [{}, {"n_layers": 2}])
def test_the_model_is_left_as_it_was(shape: dict[str, Any], untouched: Any) -> None:
    model = make_model(**shape)
    model.blocks[0].eval()
    model.W_E.grad = torch.ones_like(model.W_E)
    unchanged = untouched(model)
    with torch.no_grad():
        head_gradients(model, *examples(0))
    unchanged()
