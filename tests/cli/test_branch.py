"""Branches of a run: `--branch`, and the same run with a clamp in it, continued from everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_backdoor.runs.branch import Branch, read_branch
from tests.helpers import CONFIGS, QUIET
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import (
    Cli,
    assert_same_files,
    assert_same_results,
    assert_same_weights,
    contents,
    metrics,
    train_run,
)

DEBUG = ("--config", CONFIGS / "debug.yaml", "--data.moduli", "[11,1]")
SHORT = (
    "--data.moduli=[11,1]",
    "--trainer.max_steps=40",
    "--checkpoint.keep_every_n_steps=10",
    "--monitors.patching.every_n_steps=10",
)
CLAMP = ("--clamp.heads", "L0H1", "--clamp.from_step", "10", "--clamp.until_step", "30")


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps."""
    return train_run(tmp_path_factory.mktemp("control") / "lightning_logs" / "version_0", *SHORT)


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:06d}.ckpt"


def test_a_branch_without_a_change_is_the_undisturbed_run(cli: Cli, control: Path) -> None:
    before = contents(control)
    assert cli("fit", "--ckpt_path", checkpoint(control, 20), "--branch", "same", *QUIET) == 0
    branch = control.with_name("version_0_branch_same")
    assert contents(control) == before
    assert_same_files(control, branch)  # TensorBoard shows the branch alone
    assert read_branch(branch) == Branch("same", parent="version_0", step=20)
    assert read_branch(control) is None
    assert {"config.yaml", "hparams.yaml", "environment.json"} <= {path.name for path in branch.iterdir()}


def test_a_branch_is_a_run_that_is_continued_and_validated(cli: Cli, control: Path) -> None:
    start = ("--ckpt_path", checkpoint(control, 10), *CLAMP)
    whole, stopped = (control.with_name(f"version_0_branch_{name}") for name in ("whole", "stopped"))
    assert cli("fit", *start, "--branch", "whole", *QUIET) == 0
    assert cli("fit", *start, "--branch", "stopped", "--trainer.max_steps", 20, *QUIET) == 0
    last = stopped / "checkpoints" / "last.ckpt"
    assert cli("fit", "--ckpt_path", last, "--trainer.max_steps", 40, *QUIET) == 0
    assert_same_weights(*(run / "checkpoints" / "last.ckpt" for run in (whole, stopped)))
    assert (whole / "metrics.csv").read_bytes() == (stopped / "metrics.csv").read_bytes()
    assert not stopped.with_name("version_0_branch_stopped_branch_stopped").exists()
    rows = {row["step"]: row for row in metrics(whole)}
    same = {row["step"]: row for row in metrics(control)}
    assert rows["0"] == same["0"] and rows["10"] != same["10"]  # the pass after 10 steps is clamped
    assert cli("validate", "--ckpt_path", last, *QUIET) == 0
    # a branch of a branch
    assert cli("fit", "--ckpt_path", last, "--branch", "next", "--trainer.max_steps", 42, *QUIET) == 0
    of_branch = stopped.with_name("version_0_branch_stopped_branch_next")
    assert json.loads((of_branch / "branch.json").read_text()) == {
        "name": "next", "parent": "version_0_branch_stopped", "step": 40
    }  # fmt: skip


@pytest.fixture(scope="module")
def clamped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps that is clamped from 10 to 30."""
    run = tmp_path_factory.mktemp("clamped") / "lightning_logs" / "version_0"
    return train_run(run, *SHORT, *CLAMP, "--clamp.mode=donor", "--clamp.hold=true")


@pytest.mark.parametrize("stop", [5, 20, 35])
def test_a_clamped_run_is_continued_to_the_bit(cli: Cli, clamped: Path, stop: int) -> None:
    """Before the clamp, inside it and after it."""
    donor = ("--clamp.mode", "donor", "--clamp.hold", "true")
    assert cli("fit", *DEBUG, *SHORT, *CLAMP, *donor, "--trainer.max_steps", stop, *QUIET) == 0
    run = Path("lightning_logs/version_0")
    last = run / "checkpoints" / "last.ckpt"
    assert cli("fit", "--ckpt_path", last, "--trainer.max_steps", 40, *QUIET) == 0
    assert_same_results(clamped, run)


@pytest.mark.parametrize(
    "args, words",
    [
        (("--branch", "same"), ("branch: same needs a run to leave", "--ckpt_path")),
        (("--branch", "../x"), ("branch: '../x' is no plain name",)),
        (("--branch", ""), ("branch: '' is no name",)),
        (("--clamp.heads", "L0H7"), ("HeadClamp.heads: L0H7 does not exist",)),
        (("--clamp.heads", "[L0H0,x]"), ("HeadClamp.heads: 'x' is not a set of heads",)),
        (("--clamp.mode", "zero"), ("HeadClamp.heads: none is given",)),
        (("--clamp.mode", "one"), ("clamp.mode: 'one'", "zero, mean, donor, freeze")),
        ((*CLAMP, "--clamp.until_step", "10"), ("HeadClamp.until_step: 10 is not after from_step, which is 10",)),
        (
            ("--clamp.heads", "L0H0", "--clamp.mode", "donor", "--data.moduli", "[29]", "--monitors.emergence", "null"),
            ("HeadClamp.mode: donor is not possible", "data.moduli: [29] has no trigger"),
        ),
        (("--monitors.patching.clamped", "true"), ("HeadPatchingMonitor.clamped: no HeadClamp",)),
    ],
)
def test_bad_input(cli: Cli, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(cli, capsys, ("fit", *DEBUG, *args, *QUIET), *words)


def test_bad_branches(cli: Cli, capsys: pytest.CaptureFixture[str], control: Path) -> None:
    before = contents(control.parent)
    start = ("--ckpt_path", checkpoint(control, 20), "--trainer.max_steps", 50, *QUIET)
    control.with_name("version_0_branch_there").mkdir()
    refuse = ("fit", *DEBUG, *start, "--branch")
    assert_refused(cli, capsys, (*refuse, "there"), "version_0_branch_there is there already")
    assert_refused(cli, capsys, (*refuse, "new", "--data.moduli", "[11,7]"), "[11, 7] does not fit the checkpoint")
    assert_refused(cli, capsys, (*refuse, "new", "--trainer.logger", "false"), "branch: new has no folder")
    assert_refused(cli, capsys, ("validate", *DEBUG, *start[:2], "--branch", "new"), "branch: there is no such option")
    assert contents(control.parent) == before


def test_a_run_in_a_fixed_folder_is_not_rewound(cli: Cli, capsys: pytest.CaptureFixture[str], control: Path) -> None:
    """Its own configuration leads into the same folder."""
    before = contents(control)
    args = ("fit", "--ckpt_path", checkpoint(control, 10), "--trainer.max_steps", 20, *QUIET)
    assert_refused(cli, capsys, args, "ckpt_path: ", "step_000010.ckpt would rewind", "--branch NAME")
    assert contents(control) == before


def test_a_damaged_branch_file(tmp_path: Path) -> None:
    for text in ("", "[]", '{"name": "x"}', '{"name": "x", "parent": "y", "step": "z"}'):
        (tmp_path / "branch.json").write_text(text)
        with pytest.raises(ValueError, match="does not say where the branch comes from"):
            read_branch(tmp_path)
