from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_backdoor.functional import Head, HookedModel, Probe, head_name, head_set_name, parse_head_set
from tests.helpers.tiny_models import make_model, make_probe


@pytest.mark.parametrize(
    ("name", "heads"),
    [("none", ()), ("L0H2", (Head(0, 2),)), ("L0H0+L1H2+L10H11", (Head(0, 0), Head(1, 2), Head(10, 11)))],
)
def test_names_of_head_sets_go_both_ways(name: str, heads: tuple[Head, ...]) -> None:
    assert head_set_name(heads) == name
    assert head_set_name(heads[::-1] + heads) == name
    assert parse_head_set(name) == heads


def test_a_head_is_named_by_layer_and_index() -> None:
    assert head_name(0, 2) == "L0H2"
    assert head_name(*Head(layer=3, head=1)) == "L3H1"


@pytest.mark.parametrize("name", ["", "L0", "L0H1+", "H1", "L0H1, L0H2", "all"])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a set of heads"):
        parse_head_set(name)


def test_a_probe_is_frozen_and_reverses_into_itself() -> None:
    probe = make_probe(recipient="backdoor", donor="benign")
    with pytest.raises(dataclasses.FrozenInstanceError):
        probe.position = 0  # type: ignore[misc]
    swapped = probe.reversed()
    assert (swapped.recipient, swapped.donor) == ("benign", "backdoor")
    assert swapped.recipient_tokens is probe.donor_tokens
    assert swapped.donor_answers is probe.recipient_answers
    back = swapped.reversed()
    for field in dataclasses.fields(Probe):
        assert getattr(back, field.name) is getattr(probe, field.name)
    assert probe.to("cpu").n_examples == probe.n_examples == 17


def test_only_the_same_examples_with_the_roles_swapped_are_the_reverse() -> None:
    probe = make_probe()
    assert probe.reversed().reverses(probe) and probe.reverses(probe.reversed())
    assert not probe.reverses(probe)
    assert dataclasses.replace(probe.reversed(), position=2).reverses(probe)  # of three
    assert not dataclasses.replace(probe.reversed(), position=1).reverses(probe)
    assert not make_probe(seed=1).reversed().reverses(probe)
    assert not probe.reversed().rows(slice(5)).reverses(probe)
    assert not dataclasses.replace(probe.reversed(), donor_answers=probe.donor_answers).reverses(probe)


TOKENS, ANSWERS = torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipient_tokens": [[0]]}, "recipient_tokens is a list"),
        ({"recipient_tokens": TOKENS[0]}, r"recipient_tokens has the shape \(3,\)"),
        ({"recipient_tokens": TOKENS[:0]}, "at least one example"),
        ({"donor_tokens": TOKENS[:2]}, r"donor_tokens has the shape \(2, 3\).*must be \(4, 3\)"),
        ({"donor_tokens": TOKENS.float()}, "donor_tokens has the dtype torch.float32"),
        ({"donor_tokens": TOKENS.bool()}, "donor_tokens has the dtype torch.bool"),
        ({"donor_tokens": TOKENS - 1}, "donor_tokens contains -1"),
        ({"donor_tokens": TOKENS.to("meta")}, "donor_tokens is on meta"),
        ({"recipient_answers": ANSWERS[:, None]}, r"recipient_answers has the shape \(4, 1\)"),
        ({"donor_answers": ANSWERS[:3]}, r"donor_answers has the shape \(3,\).*must be \(4,\)"),
        ({"position": 3}, "position is 3.*give -3 to 2"),
        ({"position": -4}, "position is -4"),
        ({"position": 1.0}, "position is 1.0"),
        ({"donor": "recipient"}, "a name of its own"),
        ({"recipient": ""}, "a name of its own"),
        ({"metrics": {"kl": len}}, "name of a built-in metric"),
        ({"metrics": {"mine": 3}}, "give a function"),
    ],
)
def test_what_is_wrong_with_a_probe_is_named(changes: dict[str, Any], message: str) -> None:
    fields = {
        "recipient_tokens": TOKENS,
        "donor_tokens": TOKENS,
        "recipient_answers": ANSWERS,
        "donor_answers": ANSWERS,
    }
    Probe(**fields)
    with pytest.raises(ValueError, match=message):
        Probe(**{**fields, **changes})


def test_a_model_that_fits_passes(untouched: Any) -> None:
    model = make_model(n_layers=2)
    unchanged = untouched(model)
    make_probe().check(model)
    unchanged()
    assert isinstance(model, HookedModel)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_integers_of_any_size_are_tokens(kind: torch.dtype) -> None:
    long = make_probe()
    short = replace(long, **{name: getattr(long, name).to(kind) for name in ("recipient_tokens", "donor_answers")})
    short.check(make_model())
    assert torch.equal(short.recipient_tokens, long.recipient_tokens)


@pytest.mark.parametrize(
    ("model", "probe", "message"),
    [
        ({"d_vocab": 6}, {}, r"recipient_tokens contains 6.*only 0 to 5 \(cfg.d_vocab\)"),
        ({"d_vocab_out": 6}, {}, r"recipient_answers contains 6.*only 0 to 5 \(W_U's columns\)"),
        ({"n_ctx": 2}, {}, "3 positions, but the model's context is 2"),
    ],
)
def test_a_model_that_cannot_answer_is_refused(model: dict[str, Any], probe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_probe(n=100, **probe).check(make_model(**model))


def test_what_a_model_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="Linear lacks cfg, run_with_cache, run_with_hooks, W_O, W_U"):
        make_probe().check(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    model = make_model()
    members = {name: getattr(model, name) for name in ("run_with_cache", "run_with_hooks", "W_O", "W_U")}
    with pytest.raises(ValueError, match=r"lacks cfg\.n_heads, cfg\.n_ctx"):
        make_probe().check(SimpleNamespace(**members, cfg=SimpleNamespace(n_layers=1, d_vocab=7)))
    with pytest.raises(ValueError, match="W_O has the shape"):
        make_probe().check(SimpleNamespace(**{**members, "W_O": model.W_O[0]}, cfg=model.cfg))


@pytest.mark.parametrize("loud", [True, False])
def test_a_model_without_hook_z_is_refused(loud: bool) -> None:
    """TransformerLens raises KeyError for an unknown hook, TransformerBridge passes it over."""
    model = make_model()

    def run_with_hooks(tokens: torch.Tensor, fwd_hooks: list[Any]) -> torch.Tensor:
        if loud:
            raise KeyError(fwd_hooks[0][0])
        return torch.zeros(*tokens.shape, 7)

    other = SimpleNamespace(
        cfg=model.cfg, W_O=model.W_O, W_U=model.W_U, run_with_cache=None, run_with_hooks=run_with_hooks
    )
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.hook_z"):
        make_probe().check(other)


def test_importing_functional_is_cheap() -> None:
    code = (
        "import sys, lit_backdoor.functional\n"
        "heavy = {'lightning', 'pytorch_lightning', 'transformer_lens', 'matplotlib', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_sample_is_always_the_same_and_favours_no_answer() -> None:
    """At equal distances, every seventh pair of mod 113 would have a sum that 7 divides."""
    numbers = torch.arange(113)
    pairs = torch.stack([numbers.repeat_interleave(113), numbers.repeat(113)], dim=1)
    answers = pairs.sum(dim=1) % 7
    probe = Probe(pairs, pairs.flip(1), answers, answers)
    sample = probe.sample(1824)
    assert sample.n_examples == 1824 and torch.equal(sample.recipient_tokens, probe.sample(1824).recipient_tokens)
    assert len(sample.recipient_tokens.unique(dim=0)) == 1824
    counts = sample.recipient_answers.bincount(minlength=7)
    assert counts.min() > 0.8 * 1824 / 7 and counts.max() < 1.2 * 1824 / 7
    assert probe.sample(20_000).n_examples == probe.n_examples
