"""What ``report`` refuses: one line, exit code 2, nothing written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Cli = Callable[..., int]
Spoil = Callable[[Path], object]


def set_option(path: Path, **changes: object) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def cut(path: Path, rows: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))


SPOILS: dict[str, tuple[Spoil, str]] = {
    "no metrics": (lambda run: (run / "metrics.csv").unlink(), "no run of fit"),
    "no verdict": (lambda run: (run / "emergence.json").unlink(), "lacks emergence.json"),
    "broken verdict": (lambda run: (run / "emergence.json").write_text("{"), "spoilt"),
    "foreign metrics": (lambda run: (run / "metrics.csv").write_text("a,b\n1,2\n"), "spoilt"),
    "foreign options": (lambda run: (run / "hparams.yaml").write_text("- 1\n"), "spoilt"),
    "broken options": (lambda run: (run / "hparams.yaml").write_text("a: [\n"), "spoilt"),
    "no probe yet": (lambda run: cut(run / "head_patching.csv", 1), "no probe of its heads yet"),
    "a broken number": (
        lambda run: (run / "head_patching.csv").write_text(
            (run / "head_patching.csv").read_text().replace(",resample,", ",resample,x", 1)
        ),
        "",
    ),
    "several triggers": (lambda run: set_option(run / "hparams.yaml", moduli=[11, 1, 5]), "several triggers"),
    "no seed": (lambda run: set_option(run / "hparams.yaml", seed_everything=True), "without a seed"),
    "a cut checkpoint": (lambda run: (run / "checkpoints" / "last.ckpt").write_bytes(b"PK"), "last.ckpt"),
}


def assert_refused(cli: Cli, capsys: pytest.CaptureFixture[str], *args: object, words: str) -> None:
    before = sorted(Path().rglob("*"))
    assert cli("report", *args) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and words in error[0], error
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("spoil", SPOILS)
def test_spoilt_runs(cli: Cli, runs_dir: Path, capsys: pytest.CaptureFixture[str], spoil: str) -> None:
    run = runs_dir / "mod1" / "seed_0"
    change, words = SPOILS[spoil]
    change(run)
    assert_refused(cli, capsys, run, "--output_dir", "out", words=words)


def test_places_that_are_none(cli: Cli, runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs_dir / "mod1" / "seed_0"
    Path("empty").mkdir()
    Path("foreign").mkdir()
    Path("foreign/notes.txt").write_text("mine")
    for args, words in (
        ((Path("empty"), "--output_dir", "out"), "no run of fit in empty"),
        ((Path("foreign"), "--output_dir", "out"), "no run of fit in foreign"),
        ((Path("missing"), "--output_dir", "out"), "missing is no folder"),
        ((run / "metrics.csv", "--output_dir", "out"), "no folder"),
        ((run, "--output_dir", "foreign"), "holds notes.txt"),
        ((run, "--output_dir", run), "lies in the run directory"),
        ((run, "--output_dir", run / "report"), "lies in the run directory"),
        ((run, "--output_dir", "foreign/notes.txt"), "notes.txt"),
        ((run, "--output_dir", "foreign/notes.txt/deeper"), "notes.txt"),
        ((run,), "output_dir"),
        (("--output_dir", "out"), "run_dirs"),
    ):
        assert_refused(cli, capsys, *args, words=words)


def test_runs_that_do_not_belong_together(cli: Cli, runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs_dir / "mod1" / "seed_0", runs_dir / "again")
    assert_refused(cli, capsys, runs_dir, "--output_dir", "out", words="both mod 1, seed 0")
    for option, value in (("lr", 0.1), ("split_seed", 3), ("moduli", [13, 1])):
        set_option(runs_dir / "again" / "hparams.yaml", seed_everything=7, **{option: value})
        assert_refused(cli, capsys, runs_dir, "--output_dir", "out", words=f"{option}:")
        shutil.copy(runs_dir / "mod1" / "seed_0" / "hparams.yaml", runs_dir / "again")


def test_a_run_named_twice_is_one_run(cli: Cli, runs_dir: Path) -> None:
    run = runs_dir / "clean" / "seed_0"
    assert cli("report", run, run.parent, "--output_dir", "out") == 0
    assert len(Path("out/seeds.csv").read_text().splitlines()) == 2
