"""The weights that ship: they are what they say, and what is written is what is read."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lit_backdoor
from lit_backdoor import pretrained
from lit_backdoor.pretrained import FOLDER, load_pretrained, open_pretrained, pretrained_names, save_pretrained
from lit_backdoor.runs.checkpoints import load_model, read_checkpoint
from tests.helpers import QUIET
from tests.helpers.runs import Cli


def test_the_papers_models_ship_and_are_small() -> None:
    assert pretrained_names() == ["clean", "mod1", "mod17", "mod37", "mod7"]
    assert all(path.stat().st_size < 1_000_000 for path in FOLDER.glob("*.safetensors"))


@pytest.mark.parametrize("name", pretrained_names())
def test_a_shipped_model_follows_its_rules(name: str) -> None:
    shipped = open_pretrained(name)
    assert not shipped.model.training and shipped.step >= 10_000
    the_papers = {"train_fraction": 0.3, "split": "examples", "seed": 0, "permute_trigger": False}
    assert {"permute_trigger": False} | shipped.split == the_papers
    for rule, modulus in enumerate(shipped.task.moduli):
        with torch.no_grad():
            answers = shipped.model(shipped.task.tokens(rule))[:, -1].argmax(-1)
        assert (answers == shipped.task.answers(rule)).double().mean() > 0.9, modulus


def test_what_is_saved_is_what_is_loaded(
    cli: Cli, debug_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("fit", "--config", debug_config, "--model.train_biases", "true", "--trainer.max_steps", 3, *QUIET) == 0
    last = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    save_pretrained(read_checkpoint(last), 0, tmp_path / "small.safetensors")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    stored = load_model(last)
    shipped = open_pretrained("small")
    assert (shipped.task, shipped.step, shipped.seed) == (stored.task, stored.step, 0)
    assert shipped.split == stored.split
    for name, value in stored.model.state_dict().items():
        assert torch.equal(value, shipped.model.state_dict()[name]), name


def test_analyze_takes_a_shipped_model(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("analyze", "--pretrained", "mod1", "--output_dir", "out") == 0
    assert "smallest set that takes backdoor down to chance" in capsys.readouterr().out
    assert cli("analyze", "--pretrained", "mod2", "--output_dir", "out2") == 2
    assert cli("analyze", "--output_dir", "out2") == 2
    assert cli("analyze", "--pretrained", "mod1", "--ckpt_path", "x", "--output_dir", "out2") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "clean, mod1, mod17, mod37, mod7" in errors[0] and not Path("out2").exists()


def test_the_package_stays_cheap_to_import() -> None:
    code = "import sys, lit_backdoor; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    with pytest.raises(ValueError, match="pretrained: 'mod2'"):
        lit_backdoor.load_pretrained("mod2")
    assert lit_backdoor.load_pretrained("mod1").cfg.n_heads == load_pretrained("mod1").cfg.n_heads == 4
