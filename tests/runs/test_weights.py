"""Weights alone: what is written is what is read, and what is not is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_backdoor.pretrained import FOLDER
from lit_backdoor.runs.weights import describe_model, kept_weights, load_weights, read_weights, write_weights
from tests.helpers.tiny_models import make_model


def described(model: Any, step: int = 3) -> dict[str, Any]:
    return describe_model(model, {}, {}, step, seed=None)


@pytest.mark.parametrize("changes", [{}, {"n_layers": 2, "attn_only": True, "normalization_type": "LN"}])
def test_any_hooked_transformer_comes_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = make_model(**changes)
    with torch.no_grad():
        model.blocks[0].attn.b_Q.zero_()
    path = tmp_path / "step_000003.safetensors"
    write_weights(path, dict(model.named_parameters()), described(model))
    stored = read_weights(path)
    assert (stored.step, stored.seed, stored.task, stored.model.training) == (3, None, None, False)
    tokens = torch.tensor([[0, 1, 2], [2, 1, 0]])
    assert torch.equal(stored.model(tokens), model.eval()(tokens))
    assert [path.name for path in tmp_path.iterdir()] == [path.name]
    other = make_model(seed=1, **changes)
    load_weights(other, path)
    for name, value in model.named_parameters():
        assert torch.equal(value, dict(other.named_parameters())[name]), name


def test_what_is_refused(tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "bad.safetensors"
    weights = {name: value.detach() for name, value in model.named_parameters()}
    for change, words in (
        ({"embed.W_E": torch.ones(2)}, "embed.W_E in the shape \\[2\\] instead of"),
        ({"embed.W_E": torch.full_like(weights["embed.W_E"], torch.nan)}, "values in embed.W_E that are not finite"),
        ({"other": torch.ones(2)}, "has other, which is no weight"),
    ):
        write_weights(path, weights | change, described(model))
        for read in (read_weights, lambda path: load_weights(model, path)):
            with pytest.raises(ValueError, match=rf"^weights: .*bad\.safetensors.*{words}"):
                read(path)
    write_weights(path, weights, {"step": 1, "seed": 0})  # of a model that only its owner can build
    with pytest.raises(ValueError, match="does not say of which model; put the weights into yours"):
        read_weights(path)
    write_weights(path, weights, described(model) | {"step": -1})
    with pytest.raises(ValueError, match="step -1"):
        read_weights(path)
    save_file(weights, path)
    path.with_name("none").write_bytes(b"{}")
    for wrong in (path, path.with_name("none"), path.with_name("missing")):
        for read in (read_weights, lambda path: load_weights(model, path)):
            with pytest.raises(ValueError, match=r"weights: .* holds no"):
                read(wrong)


def test_the_weights_of_a_run_are_in_order_and_strangers_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "weights"
    folder.mkdir(parents=True)
    for name in ("step_1000000", "step_000020", "step_000100", "step_last", "other"):
        (folder / f"{name}.safetensors").touch()
    assert list(kept_weights(tmp_path)) == [20, 100, 1000000]
    assert kept_weights(tmp_path / "none") == {}


def test_the_papers_model_takes_less_than_a_megabyte(tmp_path: Path) -> None:
    shipped = read_weights(FOLDER / "mod7.safetensors")
    write_weights(tmp_path / "same.safetensors", dict(shipped.model.named_parameters()), {"step": 0, "seed": 0})
    assert (tmp_path / "same.safetensors").stat().st_size < 1_000_000
