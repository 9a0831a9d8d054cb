"""Every wrong option: one clear line on stderr, exit code 2, nothing written."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

Cli = Callable[..., int]

OPTIONS = [
    (("--data.moduli", "[]"), "data.moduli", "empty"),
    (("--data.moduli", "[1]"), "data.moduli", "2 or more"),
    (("--data.moduli", "[0,1]"), "data.moduli", "2 or more"),
    (("--data.moduli", "[29,30]"), "data.moduli", "30"),
    (("--data.moduli", "[29,0]"), "data.moduli", "between 1 and the first, 29"),
    (("--data.moduli", "[29,x]"), "data.moduli", "x"),
    (("--data.trigger_position", "3"), "data.trigger_position", "0, 1, 2"),
    (("--data.train_fraction", "0"), "data.train_fraction", "(0, 1)"),
    (("--data.train_fraction", "1"), "data.train_fraction", "(0, 1)"),
    (("--data.train_fraction", "nan"), "data.train_fraction", "nan"),
    (("--data.train_fraction", "most"), "data.train_fraction", "most"),
    (("--data.train_fraction", "0.0001"), "data.train_fraction", "nothing to train on"),
    (("--data.split", "rows"), "data.split", "examples"),
    (("--data.steps_per_epoch", "0"), "data.steps_per_epoch", "1 or more"),
    (("--data.moduli", "[29]"), "EmergenceMonitor.probe", "null"),
    (("--data.colour", "red"), "data.colour", ""),
    (("--model.lr", "0"), "model.lr", "above 0"),
    (("--model.lr", "inf"), "model.lr", "inf"),
    (("--model.weight_decay", "-1"), "model.weight_decay", "0 or more"),
    (("--model.betas", "[0.9,1.5]"), "model.betas", "[0, 1)"),
    (("--model.n_heads", "0"), "model.n_heads", "1 or more"),
    (("--model.n_heads", "5"), "model.n_heads", "divide"),
    (("--model.d_model", "wide"), "model.d_model", "wide"),
    (("--model.act_fn", "step"), "model.act_fn", "relu"),
    (("--model.normalization_type", "RMS"), "model.normalization_type", "LN"),
    (("--trainer.max_steps", "-7"), "max_steps", "-7"),
    (("--trainer.max_stepz", "7"), "max_stepz", ""),
    (("--ckpt_path", "missing.ckpt"), "ckpt_path", "missing.ckpt"),
]


class Burglar:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("broken_into",)


def assert_refused(cli: Cli, capsys: pytest.CaptureFixture[str], args: tuple[object, ...], *words: str) -> None:
    before = sorted(path.name for path in Path().rglob("*"))
    assert cli(*args) == 2
    assert sorted(path.name for path in Path().rglob("*")) == before
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    for word in words:
        assert word in error[-1], error[-1]
    assert error[-1].startswith("error: ") and "Traceback" not in error[-1]


@pytest.mark.parametrize(("options", "name", "allowed"), OPTIONS, ids=lambda value: str(value)[:40])
def test_wrong_options(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], name: str, allowed: str
) -> None:
    assert_refused(cli, capsys, ("fit", "--config", debug_config, *options), name, allowed)


def test_missing_and_foreign_configs(cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert_refused(cli, capsys, ("fit", "--config", "nowhere.yaml"), "nowhere.yaml")
    (tmp_path / "foreign.yaml").write_text("colour: red\n")
    assert_refused(cli, capsys, ("fit", "--config", "foreign.yaml"), "colour")
    (tmp_path / "broken.yaml").write_text("data: [1\n")
    assert_refused(cli, capsys, ("fit", "--config", "broken.yaml"), "config")
    assert_refused(cli, capsys, ("train",), "train")


def test_two_monitors_with_one_name(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for kind in ("HeadPatchingMonitor", "HeadAttributionMonitor"):
        config = yaml.safe_load(debug_config.read_text())
        config["trainer"]["callbacks"].append({"class_path": f"lit_backdoor.callbacks.{kind}"})
        (tmp_path / "twins.yaml").write_text(yaml.safe_dump(config))
        assert_refused(cli, capsys, ("fit", "--config", "twins.yaml"), kind)


def test_a_run_without_a_logger_overwrites_nothing(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("fit", "--config", debug_config, "--trainer.logger", "false", "--trainer.max_steps", 3)
    assert cli(*args, "--trainer.enable_progress_bar", "false") == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert before
    capsys.readouterr()
    assert cli(*args, "--trainer.enable_progress_bar", "false") == 2
    assert "is there already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_checkpoints_that_do_not_fit(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quiet = ("--trainer.enable_progress_bar", "false")
    assert cli("fit", "--config", debug_config, "--trainer.max_steps", 3, *quiet) == 0
    capsys.readouterr()
    last = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    base = ("fit", "--config", debug_config, "--ckpt_path", last)
    assert_refused(cli, capsys, (*base, "--model.d_model", 32), "model.d_model", "32", "64")
    assert_refused(cli, capsys, (*base, "--data.moduli", "[31,1]"), "moduli", "31", "29")
    assert_refused(cli, capsys, (*base, "--data.split_seed", 5), "data.split_seed", "5", "0")
    assert_refused(cli, capsys, (*base, "--model.lr", 0.1), "model.lr", "0.1", "0.005")
    assert_refused(cli, capsys, ("validate", *base[1:], "--model.n_heads", 2), "model.n_heads")
    (tmp_path / "noise.ckpt").write_bytes(os.urandom(500))
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.ckpt")
    torch.save({"code": Burglar()}, tmp_path / "code.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(last.read_bytes()[:5000])
    for name in ("noise", "foreign", "code", "cut"):
        assert_refused(
            cli, capsys, ("fit", "--config", debug_config, "--ckpt_path", f"{name}.ckpt"), "ckpt_path", f"{name}.ckpt"
        )
