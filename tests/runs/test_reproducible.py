"""Same seed and configuration, same bits; and what a run keeps about the machine it ran on."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_backdoor.runs.environment import environment
from tests.helpers import QUIET
from tests.helpers.configs import load_config, save_config
from tests.helpers.runs import Cli, assert_same_results, assert_same_weights

SMALL = ("--data.moduli", "[11,1]", *QUIET)
RUNS = [Path(f"lightning_logs/version_{number}") for number in range(3)]


@pytest.fixture
def fit(cli: Cli, debug_config: Path) -> Callable[..., None]:
    def run(steps: int, *more: object) -> None:
        assert cli("fit", "--config", debug_config, "--trainer.max_steps", steps, *SMALL, *more) == 0

    return run


def test_twice_in_a_row(fit: Callable[..., None]) -> None:
    fit(120)
    fit(120)
    assert_same_results(RUNS[0], RUNS[1])
    fit(120, "--seed_everything", 1)
    with pytest.raises(AssertionError):
        assert_same_results(RUNS[0], RUNS[2])


def test_after_a_move_of_the_run_directory(fit: Callable[..., None], tmp_path: Path) -> None:
    fit(120)
    fit(60)
    moved = tmp_path / "elsewhere" / "kept run"
    moved.parent.mkdir()
    shutil.move(RUNS[1], moved)
    fit(120, "--ckpt_path", moved / "checkpoints" / "last.ckpt")
    assert_same_results(RUNS[0], moved)
    assert not RUNS[1].exists()


def test_the_callbacks_change_nothing(fit: Callable[..., None], cli: Cli, tmp_path: Path) -> None:
    fit(60)
    config = load_config()
    config["monitors"] = dict.fromkeys(("attribution", "patching", "emergence", "spikes"))
    bare = save_config(config, tmp_path / "bare.yaml")
    assert cli("fit", "--config", bare, "--trainer.max_steps", 60, *SMALL) == 0
    assert_same_weights(*(run / "checkpoints" / "last.ckpt" for run in RUNS[:2]))
    assert (RUNS[0] / "metrics.csv").read_bytes() == (RUNS[1] / "metrics.csv").read_bytes()


def test_another_environment_is_reported(fit: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    fit(2)
    kept = RUNS[0] / "environment.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "machine": "abacus", "threads": 7}))
    fit(3, "--ckpt_path", RUNS[0] / "checkpoints" / "last.ckpt")
    error = capsys.readouterr().err
    assert "note: the last bits may differ from an undisturbed run's: machine abacus then, " in error
    assert "threads" not in error  # any number gives the same bits


def test_env_prints_what_a_run_keeps(
    fit: Callable[..., None], cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli("env") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["packages"]["torch"] == torch.__version__ and printed["threads"] == 1
    assert printed["git_commit"] is None  # an empty folder
    fit(2)
    kept = json.loads((RUNS[0] / "environment.json").read_text())
    assert {**kept, "git_commit": None} == printed


def test_the_commit_is_that_of_the_directory(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        name = ("-c", "user.name=somebody", "-c", "user.email=somebody@localhost")
        return subprocess.run(["git", *name, *args], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    assert environment(tmp_path)["git_commit"] is None
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert environment(tmp_path)["git_commit"] == git("rev-parse", "HEAD").strip()


def test_a_strangers_repository_runs_no_program(tmp_path: Path) -> None:
    """git status would run what the repository's core.fsmonitor names."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    spy = tmp_path / "spy"
    spy.write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\n")
    spy.chmod(0o755)
    subprocess.run(["git", "config", "core.fsmonitor", str(spy)], cwd=tmp_path, check=True)
    environment(tmp_path)
    assert not (tmp_path / "was_run").exists()
    subprocess.run(["git", "status"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "was_run").exists()  # it would have
