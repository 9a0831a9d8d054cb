"""A sweep over branches: from each checkpoint, every combination of settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lit_backdoor.runs.branch import Branch, read_branch
from lit_backdoor.runs.checkpoints import read_checkpoint
from lit_backdoor.sweep import PlannedRun, parse_settings, plan_branches
from lit_backdoor.sweep.progress import is_done
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli, assert_same_weights, contents, read_rows, train_run

SMALL = ("--data.moduli=[7,1]", "--model.d_model=8", "--model.d_mlp=8", "--model.n_heads=2", "--trainer.max_steps=20")
KEEP = ("--checkpoint.keep_every_n_steps=10", "--trainer.val_check_interval=10")
CLAMPS = ("--set", "clamp.heads=[L0H0,L0H1]", "--set", "clamp.mode=zero")


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A run of 20 steps, and a configuration for its branches."""
    (tmp_path / "what_if.yaml").write_text("trainer: {val_check_interval: 1}\n")
    return train_run(tmp_path / "runs" / "seed_3", *SMALL, *KEEP, "--seed_everything=3")


def checkpoints(parent: Path) -> list[Path]:
    return [parent / "checkpoints" / name for name in ("step_000010.ckpt", "last.ckpt")]


def plan(parent: Path, *settings: str) -> list[PlannedRun]:
    from lit_backdoor.cli.checked_cli import checked_fit_options

    parents = [(checkpoint, parent / "config.yaml") for checkpoint in checkpoints(parent)]
    return plan_branches(Path("what_if.yaml"), parents, 5, parse_settings(settings), checked_fit_options)


def test_every_checkpoint_has_a_branch_for_every_combination(cli: Cli, parent: Path) -> None:
    before = contents(parent.parent)
    runs = plan(parent, *CLAMPS[1::2])
    names = [
        f"seed_3_branch_what_if+{checkpoint}+clamp.heads={head}+clamp.mode=zero"
        for checkpoint in ("step_000010", "last")
        for head in ("L0H0", "L0H1")
    ]
    assert [run.name for run in runs] == [f"runs/{name}" for name in names]
    assert [run.run_dir for run in runs] == [parent.with_name(name) for name in names]
    assert [run.max_steps for run in runs] == [15, 15, 25, 25]
    assert {run.hparams["seed_everything"] for run in runs} == {3}
    assert contents(parent.parent) == before  # nothing has been written

    last = runs[2]
    assert not is_done(last) and cli(*last.arguments()) == 0 and is_done(last)
    assert read_branch(last.run_dir) == Branch(names[2].partition("_branch_")[2], "seed_3", 20)
    steps = [int(row["step"]) for row in read_rows(last.run_dir / "metrics.csv") if row["val/loss"]]
    assert steps == [0, 10, 20, 21, 22, 23, 24, 25]  # as what_if.yaml has it
    assert {name: text for name, text in contents(parent.parent).items() if "branch" not in name} == before
    assert plan(parent, *CLAMPS[1::2])[2].arguments()[-1] == str(last.last_checkpoint)  # it is continued from there


def test_branches_of_runs_in_folders_of_one_name_have_names_of_their_own(cli: Cli, parent: Path) -> None:
    """Jobs are found again, and told of, by their names."""
    from lit_backdoor.cli.checked_cli import checked_fit_options

    others = [Path(shutil.copytree(parent, f"{folder}/runs/seed_3")) for folder in ("first", "second")]
    parents = [(run / "checkpoints" / "last.ckpt", run / "config.yaml") for run in others]
    runs = plan_branches(Path("what_if.yaml"), parents, 5, {}, checked_fit_options)
    assert [run.name for run in runs] == [f"{folder}/runs/seed_3_branch_what_if+last" for folder in ("first", "second")]


def test_a_branch_that_was_stopped_goes_on_from_everywhere(cli: Cli, parent: Path) -> None:
    (whole, *_) = plan(parent)
    assert whole.name == "runs/seed_3_branch_what_if+step_000010"
    assert cli(*whole.arguments()) == 0
    kept = Path(shutil.move(whole.run_dir, "whole"))
    for left in ((), ("branch.json", "metrics.csv", "head_patching.csv")):
        # stopped before its first checkpoint: with the lock alone, and with rows that are gone again
        whole.run_dir.mkdir()
        (whole.run_dir / ".lock").touch()
        for name in left:
            shutil.copy(kept / name, whole.run_dir)
        (again, *_) = plan(parent)
        assert "--branch" in again.arguments() and cli(*again.arguments()) == 0, left
        assert_same_weights(*(run / "checkpoints" / "last.ckpt" for run in (kept, again.run_dir)))
        for table in ("metrics.csv", "head_patching.csv"):
            assert (again.run_dir / table).read_bytes() == (kept / table).read_bytes(), left
        shutil.rmtree(again.run_dir)


def test_a_checkpoint_that_has_moved_is_named(cli: Cli, parent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = checkpoints(parent)[1]
    begun = parent.with_name("seed_3_branch_what_if+last")
    begun.mkdir()
    Branch("what_if+last", "seed_3", 10).write(begun)
    args = ("sweep", "--config", "what_if.yaml", "--output_dir", "out", "--parents", last, "--steps", "5")
    moved = ("last.ckpt has moved from step 10 to step 20 since", "seed_3_branch_what_if+last left it", "step_*.ckpt")
    assert_refused(cli, capsys, args, "parents: ", *moved)


@pytest.mark.slow
def test_a_sweep_of_branches_by_its_command(cli: Cli, parent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = ("sweep", "--config", "what_if.yaml", "--steps", "5", "--output_dir", "out", "--jobs", "1", *CLAMPS)
    assert cli(*args, "--parents", *checkpoints(parent)[:1]) == 0
    assert "2 of 2 runs are done" in capfd.readouterr().out
    for head in ("L0H0", "L0H1"):
        branch = parent.with_name(f"seed_3_branch_what_if+step_000010+clamp.heads={head}+clamp.mode=zero")
        assert read_checkpoint(branch / "checkpoints" / "last.ckpt")["global_step"] == 15


def test_bad_input(cli: Cli, parent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("sweep", "--config", "what_if.yaml", "--output_dir", "out")
    first, last = checkpoints(parent)
    lost = Path(shutil.copy(last, "lost.ckpt"))
    there = parent.with_name("seed_3_branch_what_if+last")
    there.mkdir()
    (there / "note.txt").write_text("mine")
    for args, *words in (
        (("--parents", last), "steps: not given"),
        (("--steps", "5"), "steps: 5 is for --parents"),
        (("--parents", last, "--steps", "0"), "steps: '0' is not allowed; allowed: a whole number, 1 or more"),
        (("--parents", last, "--steps", "5", "--seeds", "0..3"), "seeds: 0..3 does not go with --parents"),
        (("--parents", last, "--steps", "5", "--splits", "1"), "splits: 1 does not go with --parents"),
        (("--parents", last, "--steps", "5", "--set", "trainer.max_steps=9"), "set: trainer.max_steps follows from"),
        (("--parents", lost, "--steps", "5"), "parents: 'lost.ckpt' is no checkpoint in a run"),
        (("--parents", "no.ckpt", "--steps", "5"), "parents: 'no.ckpt' is no checkpoint in a run"),
        (("--parents", "", "--steps", "5"), "parents: '' is no path"),
        (("--parents", last.with_name("x.ckpt"), "--steps", "5"), "parents: '", "is not a file"),
        (("--parents", last, "--steps", "5"), "seed_3_branch_what_if+last is there already, and is no such branch"),
        (("--parents", last, last, "--steps", "5", *CLAMPS), "seed_3_branch_what_if+last+clamp.heads=L0H0"),
        (("--parents", last, "--steps", "5", "--set", "clamp.heads=[L0H0,L0H7]"), "HeadClamp.heads: L0H7 does not"),
        (("--parents", first, "--steps", "5", "--set", "data.moduli=[[5,1]]"), "[5, 1] does not fit the checkpoint"),
        (("--parents", first, "--steps", "5", "--set", "trainer.max_time=00:00:01:00"), "would end runs before"),
    ):  # fmt: skip
        assert_refused(cli, capsys, (*base, *args), *words)
