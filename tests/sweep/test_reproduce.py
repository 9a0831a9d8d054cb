"""``reproduce`` through the command line, in a small modulus, and what it refuses."""

from pathlib import Path

import pytest

from lit_backdoor.cli.checked_cli import checked_fit_options
from lit_backdoor.cli.expected_time import expected_time
from lit_backdoor.cli.main import main
from lit_backdoor.cli.reproduce import has_fitted, planned_runs
from lit_backdoor.cli.shipped_configs import find_config
from lit_backdoor.runs.verdict import read_verdict
from lit_backdoor.sweep import LocalEngine, PlannedRun, declared_parts, until
from tests.helpers.runs import Cli, read_rows, times

SMOKE = ("reproduce", "--scale", "smoke", "--output_dir", "out")


def planned(scale: str, name: str) -> list[PlannedRun]:
    (part,) = [part for part in declared_parts(scale) if part.name == name]
    return part.runs(Path("out"), find_config, checked_fit_options)


def folders(runs: list[PlannedRun]) -> list[str]:
    return [str(run.run_dir.relative_to(Path("out").absolute())) for run in runs]


@pytest.mark.slow
def test_everything_from_one_command_and_nothing_twice(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli(*SMOKE) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    assert "mod1: 1 run, 300 steps to go" in said and "in all " in said
    assert "1 of 1 runs have fitted by step 200" in said and "4 of 4 runs are done" in said
    rows = read_rows(Path("out/report/table2.csv"))
    assert {(row["p1"], row["seed"]) for row in rows} >= {("1", "10"), ("7", "10")}
    assert "mod 7" in Path("out/report/index.html").read_text()
    assert len(read_rows(Path("out/census_report/seeds.csv"))) == 4
    runs = times(Path("out/runs")) | times(Path("out/census"))
    assert cli(*SMOKE) == 0
    assert "mod1: 1 run, 0 steps to go" in capfd.readouterr().out
    assert times(Path("out/runs")) | times(Path("out/census")) == runs


@pytest.mark.slow
def test_what_has_not_fitted_is_not_trained_on(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    """With 20 steps no run fits: all are tried, none goes on, and the exit code says that too few have."""
    assert cli(*SMOKE, "--parts", "mod7", "--max_steps", "20") == 1, capfd.readouterr().err
    said = capfd.readouterr().out
    assert "0 of 2 runs have fitted by step 20\n1 are declared; there is no seed left" in said
    for run in planned("smoke", "mod7"):
        assert read_verdict(run.run_dir)["fitted_step"] is None
    assert not Path("out/census").exists() and not Path("out/runs/mod1").exists()


def test_a_later_part_is_checked_before_the_first_is_trained(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = planned("smoke", "inert")
    run.run_dir.mkdir(parents=True)
    (run.run_dir / "hparams.yaml").write_text("split_seed: 5\n")
    assert cli(*SMOKE) == 2
    assert "holds a run with split_seed 5, where 0 is asked" in capsys.readouterr().err
    (run.run_dir / "hparams.yaml").unlink()
    (run.run_dir / "metrics.csv").write_text("step,train/loss\nxx,1.0\n")
    assert cli(*SMOKE) == 2
    error = capsys.readouterr().err
    assert "metrics.csv is damaged" in error and error.count("\n") == 1
    assert not Path("out/census").exists()


def test_of_a_run_that_failed_nobody_says_whether_it_fits(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """It is tried again, and no other seed takes its place: a kill must not change which seeds are trained."""
    run = planned("smoke", "inert")[0]
    assert has_fitted(run, 60) is None  # not begun
    assert cli(*until(run, 60).arguments()) == 0
    assert has_fitted(run, 200) is None  # it has not come so far
    assert has_fitted(run, 60) is True and has_fitted(run, 10) is False
    (run.run_dir / "emergence.json").write_text("{")
    assert has_fitted(run, 60) is None
    assert f"{run.name} can't be read: " in capsys.readouterr().out


def test_a_run_is_continued_from_where_it_had_to_have_fitted(cli: Cli) -> None:
    run = planned("smoke", "mod1")[0]
    first, rest = until(run, 200), until(run, run.max_steps)
    assert (first.max_steps, rest.max_steps) == (200, 300) and first.run_dir == rest.run_dir
    options = checked_fit_options(first.arguments())
    assert (options.trainer.max_steps, options.data.moduli, options.model.d_mlp) == (200, [29, 1], 128)
    assert checked_fit_options(rest.arguments()).trainer.max_steps == 300


@pytest.mark.parametrize(("max_steps", "steps"), [(None, 300), (20, 20), (5000, 300)])
def test_no_run_is_longer_than_declared(cli: Cli, max_steps: int | None, steps: int) -> None:
    (part,) = [part for part in declared_parts("smoke") if part.name == "inert"]
    (run,) = planned_runs(part, Path("out"), max_steps)
    assert run.max_steps == checked_fit_options(run.arguments()).trainer.max_steps == steps


def test_what_is_declared(cli: Cli) -> None:
    """The census crosses every seed with every split; the long runs take the splits in turn."""
    parts = {part.name: part for part in declared_parts("full")}
    runs = {name: planned("full", name) for name in parts}
    assert len(runs["census_mod1"]) == 40 and {run.max_steps for run in runs["census_mod1"]} == {600}
    pairs = {(run.hparams["seed_everything"], run.hparams["split_seed"]) for run in runs["census_mod1"]}
    assert pairs == {(seed, split) for seed in range(8) for split in range(5)}
    in_turn = [f"runs/mod1/mod1+data.split_seed={i % 4}/seed_{10 + i}" for i in range(24)]
    assert folders(runs["mod1"]) == in_turn
    assert {run.max_steps for run in runs["mod1"]} == {20_000} and {run.max_steps for run in runs["mod7"]} == {10_000}
    assert (parts["mod1"].fitted, parts["mod1"].fit_by, parts["mod7"].fitted) == (12, 2000, 5)
    every = [folder for of_part in runs.values() for folder in folders(of_part)]
    assert len(set(every)) == len(every)


def test_the_time_that_is_expected(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done does not count."""
    run = planned("smoke", "inert")[0]
    (part,) = [part for part in declared_parts("smoke") if part.name == "inert"]
    engine = LocalEngine(Path("out/jobs"), main, threads=1)
    assert "inert: 1 run, 300 steps to go, " in expected_time([(part, [run])], engine, 2)
    assert cli(*until(run, 120).arguments()) == 0
    assert "inert: 1 run, 180 steps to go, " in expected_time([(part, [run])], engine, 2)


def test_a_report_that_could_not_be_written_is_told_before_training(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out/report").mkdir(parents=True)
    Path("out/report/notes.txt").write_text("mine")
    assert cli("reproduce", "--output_dir", "out", "--scale", "smoke") == 2
    assert (
        "holds notes.txt" in capsys.readouterr().err
        and not Path("out/runs").exists()
        and not Path("out/census").exists()
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--parts", "mod1,modd7"), ("parts", "'modd7'", "did you mean mod7", "census_mod1")),
        (("--engine", "cloud"), ("engine", "cloud", "slurm")),
        (("--engine", "slurm"), ("engine", "sbatch")),
        (("--partition", "debug"), ("partition", "slurm")),
        (("--jobs", "0"), ("jobs", "0")),
        (("--max_steps", "-3"), ("max_steps", "-3")),
        (("--scale", "huge"), ("scale", "huge", "smoke")),
    ],
)
def test_what_is_refused(
    cli: Cli, args: tuple[str, str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", "")  # no Slurm here
    assert cli("reproduce", "--output_dir", "out", *args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error
    assert not Path("out").exists()
