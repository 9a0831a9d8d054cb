"""``reproduce`` through the command line, in a small modulus, and what it refuses."""

from pathlib import Path

import pytest

from lit_backdoor.cli.reproduce import paper_runs
from lit_backdoor.cli.shipped_configs import find_config
from tests.helpers.runs import Cli, read_rows, times

SMOKE = ("reproduce", "--scale", "smoke", "--seeds", "0..1", "--max_steps", "60", "--output_dir", "out")


def check_report(report: Path) -> None:
    rows = read_rows(report / "table2.csv")
    assert {(row["p1"], row["seed"]) for row in rows} == {("1", "0"), ("1", "1"), ("7", "0"), ("17", "0"), ("37", "0")}
    assert "mod 37" in (report / "index.html").read_text()


@pytest.mark.slow
def test_finished_runs_are_reported_and_not_run_again(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    for run in paper_runs(Path("out/runs"), "smoke", [0, 1], 60):
        assert cli(*run.arguments()) == 0
    for path in Path("out/runs").rglob("*.ckpt"):  # which may be thrown away
        path.unlink()
    runs = times(Path("out/runs"))
    capfd.readouterr()
    assert cli(*SMOKE) == 0
    printed = capfd.readouterr()
    assert "6 of 6 runs are done" in printed.out and "Mod 1: where the backdoor sits" in printed.out
    assert "running" not in printed.err
    assert times(Path("out/runs")) == runs
    check_report(Path("out/report"))


@pytest.mark.slow
def test_everything_from_one_command_and_nothing_twice(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli(*SMOKE) == 0, capfd.readouterr().err
    assert "6 of 6 runs are done" in capfd.readouterr().out
    check_report(Path("out/report"))
    runs = times(Path("out/runs"))
    assert cli(*SMOKE) == 0
    assert times(Path("out/runs")) == runs


def test_the_papers_runs(cli: Cli) -> None:
    runs = paper_runs(Path("out"), "paper", list(range(10)), None)
    assert [run.name for run in runs][:5] == [f"{name}/seed_0" for name in ("mod1", "mod7", "mod17", "mod37", "clean")]
    assert [run.name for run in runs][5:] == [f"mod1/seed_{seed}" for seed in range(1, 10)]
    assert {run.name.split("/")[0]: run.max_steps for run in runs} == {
        "mod1": 20_000, "mod7": 20_000, "mod17": 40_000, "mod37": 20_000, "clean": 20_000,
    }  # fmt: skip
    assert {run.max_steps for run in paper_runs(Path("out"), "paper", [0], 10_000)} == {10_000}
    with pytest.raises(ValueError, match="'nothing' is not a file"):
        find_config("nothing")


def test_a_report_that_could_not_be_written_is_told_before_training(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out/report").mkdir(parents=True)
    Path("out/report/notes.txt").write_text("mine")
    assert cli("reproduce", "--output_dir", "out", "--scale", "smoke") == 2
    assert "holds notes.txt" in capsys.readouterr().err and not Path("out/runs").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--seeds", "x"), ("seeds", "'x'", "0..9")),
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
