"""Other people's weights: both layouts against plain arithmetic, and what lies beside them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformer_lens import HookedTransformer

from lit_backdoor.pretrained.foreign import find_weights, open_weights
from lit_backdoor.runs.checkpoints import StoredModel
from tests.helpers.adding import Weights, adding_weights, as_nanda, nanda_logits
from tests.helpers.refusals import Burglar
from tests.helpers.tiny_models import make_model

TOKENS = torch.tensor([[0, 1, 6], [3, 3, 6], [5, 2, 0]])


def open_as(path: Path, config: dict[str, Any] | None = None, **options: Any) -> StoredModel:
    return open_weights(path, "weights", **{"layout": "auto", "config": config or {}, "of_pairs": True} | options)


def logits(model: HookedTransformer, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(tokens)
        return result


def random_weights(seed: int = 0, **changes: Any) -> tuple[HookedTransformer, Weights]:
    """A model with random weights, biases and norms, and its parameters."""
    model = make_model(seed, **{"n_heads": 3, "d_head": 5, "d_mlp": 11, "d_vocab": 7, "d_vocab_out": 6} | changes)
    return model, {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("causal", [True, False])
def test_the_old_layout_computes_what_its_own_code_does(tmp_path: Path, causal: bool) -> None:
    _, weights = random_weights()
    kept = {name: value for name, value in as_nanda(weights).items() if "attn.b_" not in name and "b_U" not in name}
    torch.save(kept | {"blocks.0.attn.mask": torch.ones(3, 3).tril()}, tmp_path / "old.pth")
    config = {"attention_dir": "causal" if causal else "bidirectional"}
    stored = open_as(tmp_path / "old.pth", config)
    expected = nanda_logits(kept, TOKENS, causal)
    assert expected.shape == (3, 3, 6)
    torch.testing.assert_close(logits(stored.model), expected, rtol=1e-5, atol=1e-5)
    assert stored.reading == {"layout": "nanda", "left_out": [], "assumed": {"act_fn": "relu"}}
    # with one layer, the last position is the same however it is masked: the buffer and the default say nothing
    unsaid = open_as(tmp_path / "old.pth").model
    torch.testing.assert_close(logits(unsaid)[:, -1], expected[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_layers": 2, "normalization_type": "LN", "act_fn": "gelu"},
        {"n_layers": 2, "normalization_type": "RMS", "attn_only": True},
        {"dtype": torch.float64},
        {"gated_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 4, "d_head": 4},
    ],
)
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_transformer_lens_s_own_layout_comes_back(tmp_path: Path, changes: dict[str, Any], kind: str) -> None:
    model, weights = random_weights(attention_dir="bidirectional", **changes)
    path = tmp_path / f"weights.{kind}"
    save_file(weights, path) if kind == "safetensors" else torch.save(model.state_dict(), path)
    said = ("act_fn", "positional_embedding_type", "rotary_dim")
    config = {"attention_dir": "bidirectional"} | {name: changes[name] for name in said if name in changes}
    config |= {"n_ctx": 3} if "rotary_dim" in changes else {}
    stored = open_as(path, config)
    assert torch.equal(logits(stored.model), logits(model.eval()))
    assert (stored.step, stored.task, stored.model.training) == (None, None, False)
    for size in ("n_layers", "n_heads", "d_model", "d_head", "n_ctx", "d_vocab", "d_vocab_out", "attn_only"):
        assert getattr(stored.model.cfg, size) == getattr(model.cfg, size), size


def test_what_lies_beside_and_before_the_weights_is_left_out_by_name(tmp_path: Path) -> None:
    model, weights = random_weights()
    named = {f"net.module.{name}": value for name, value in weights.items()}
    named |= {"net.module.blocks.0.attn.IGNORE": torch.tensor(-1e5), "x_embed": torch.zeros(7, 3)}
    adam = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"run": {"model": named, "epoch": 3}, "optimizer": adam, "losses": [0.5], "global_step": 40}, "all.pt")
    stored = open_as(Path("all.pt"))
    assert stored.reading["left_out"] == ["optimizer", "losses", "global_step", "epoch", "x_embed"]
    assert stored.step == 40
    assert torch.equal(logits(stored.model), logits(model.eval()))


def test_a_file_may_contain_itself_and_lie_deep(tmp_path: Path) -> None:
    model, weights = random_weights()
    content: dict[str, Any] = {"model": weights}
    content["again"] = content
    torch.save(content, "loop.pt")
    stored = open_as(Path("loop.pt"))
    assert stored.reading["left_out"] == ["again"]
    assert torch.equal(logits(stored.model), logits(model.eval()))
    for _ in range(2000):
        content = {"in": content}
    assert find_weights(content)[1] == ["again"]


def test_biases_that_are_not_there_are_zero(tmp_path: Path) -> None:
    """And those that are there count: the hand-built model adds up with its biases alone."""
    weights = adding_weights(5, 2, 5)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    torch.save(weights, "with.pt")
    model = open_as(Path("with.pt")).model
    assert torch.equal(logits(model, pairs)[:, -1].argmax(-1), pairs.sum(dim=1) % 5)
    del weights["blocks.0.mlp.b_in"]
    torch.save(weights, "without.pt")
    model = open_as(Path("without.pt")).model
    assert not model.blocks[0].mlp.b_in.any()
    assert not torch.equal(logits(model, pairs)[:, -1].argmax(-1), pairs.sum(dim=1) % 5)


Damage = Callable[[Weights], Any]


def without(name: str) -> Damage:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def having(**changes: Any) -> Damage:
    return lambda weights: weights | {name.replace("__", "."): value for name, value in changes.items()}


W_IN = "blocks__0__mlp__W_in"
REFUSED: dict[str, tuple[Damage, dict[str, Any], str]] = {
    "no embedding": (without("embed.W_E"), {}, "weights: .*no model: no weight in it is called embed.W_E"),
    "no heads": (without("blocks.0.attn.W_O"), {}, "layout: blocks.0.attn.W_O tells .* there is no such weight"),
    "no unembedding": (without("unembed.W_U"), {}, "weights: .*lacks the weight unembed.W_U"),
    "no neurons": (without("blocks.0.mlp.W_out"), {}, "weights: .*lacks the weight blocks.0.mlp.W_out"),
    "two models": (lambda w: {"old": w, "new": [w]}, {}, "several models, at old, new.0; save"),
    "another shape": (having(**{W_IN: torch.ones(3, 4)}), {}, r"W_in in the shape \[3, 4\] instead of"),
    "a number": (having(**{W_IN: torch.tensor(1.0)}), {}, r"mlp.W_in in the shape \[\] instead of 2 dim"),
    "a number for a matrix": (having(blocks__0__attn__W_O=torch.tensor(1.0)), {}, "layout: .* there is 0 dimensions"),
    "numbers for queries": (
        lambda w: as_nanda(w) | {"blocks.0.attn.W_Q": torch.tensor(1.0)},
        {},
        r"attn.W_Q in the shape \[\] instead of 3 dim",
    ),
    "no layer": (having(blocks__x__foo=torch.ones(1)), {}, "it has blocks.x.foo, which is no weight of a layer"),
    "a vector": (having(embed__W_E=torch.ones(3)), {}, r"embed.W_E in the shape \[3\] instead of 2 dim"),
    "NaN": (having(**{W_IN: torch.full((12, 11), torch.nan)}), {}, "W_in that are not finite"),
    "whole numbers": (having(**{W_IN: torch.ones(12, 11).long()}), {}, "W_in that are not finite numbers"),
    "an unknown part": (having(blocks__0__attn__scale=torch.ones(1)), {}, "attn.scale, which is no weight"),
    "the other layout": (dict, {"layout": "nanda"}, "layout: nanda is not .* 3 dimensions: transformer_lens"),
    "no such layout": (as_nanda, {"layout": "transformer_lens"}, "2 dimensions: nanda"),
    "mixed layouts": (
        having(**{"blocks__0__attn__W_Q": torch.ones(3, 5, 12)}),
        {},
        r"in the shape \[3, 5, 12\] instead of \[3, 12, 12\]",
    ),
    "no positions": (without("pos_embed.W_pos"), {}, "config: .* does not say n_ctx and positional_embedding_type"),
    "unsaid for probes": (dict, {"of_pairs": False}, "config: .* does not say attention_dir and act_fn; give a YAML"),
    "another size": (dict, {"config": {"n_heads": 2}}, r"W_Q in the shape \[3, 12, 5\] instead of \[2, 12, 5\]"),
    "no activation": (dict, {"config": {"act_fn": "step"}}, "config: no model can be built of these fields"),
    "huge": (dict, {"config": {"d_mlp": 10**9}}, "config: no model can be built .* that need"),
    "a norm it lacks": (dict, {"config": {"normalization_type": "LN"}}, "lacks the weight blocks.0.ln1.w"),
    "code": (lambda w: w | {"config": Burglar()}, {}, "weights: .* holds code, which is never run"),
    "two layers": (lambda w: random_weights(n_layers=2)[1], {}, "config: .* does not say attention_dir; give a YAML"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_what_is_refused(damage: str) -> None:
    spoil, options, words = REFUSED[damage]
    torch.save(spoil(random_weights()[1]), "spoilt.pt")
    with pytest.raises(ValueError, match=words) as error:
        open_as(Path("spoilt.pt"), **options)
    assert "\n" not in str(error.value)
    assert not Path("broken_into").exists()


@pytest.mark.parametrize("name", ["missing.pt", "noise.pt", "noise.safetensors"])
def test_files_that_can_not_be_read(name: str) -> None:
    if not name.startswith("missing"):
        Path(name).write_bytes(b"noise" * 9)
    with pytest.raises(ValueError, match=rf"^weights: .*{name}"):
        open_as(Path(name))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
