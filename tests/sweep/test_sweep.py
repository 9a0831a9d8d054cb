"""``sweep`` through the command line, with real jobs on this machine."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lit_backdoor.cli.engine_options import add_engine_options, make_engine
from lit_backdoor.cli.main import main
from lit_backdoor.cli.parser import OneLineParser
from lit_backdoor.functional.row_threads import usable_cores
from lit_backdoor.runs.checkpoints import read_checkpoint
from lit_backdoor.sweep import LocalEngine
from lit_backdoor.sweep.progress import read_progress
from tests.helpers.runs import Cli, assert_same_results, times
from tests.helpers.sweeps import RUN, small_sweep, sweeping, wait_for


@pytest.mark.slow
def test_one_that_dies_takes_no_other_with_it(cli: Cli, debug_config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = small_sweep(debug_config, "--set", "trainer.max_steps=20", "--set", "model.lr=[1e-3,1e30]", "--jobs", "2")
    assert cli(*args) == 1
    told = capfd.readouterr()
    assert "debug+model.lr=1e30/seed_0 failed: error:" in told.out and "1 of 2 runs are done" in told.out
    good = Path("out/debug+model.lr=1e-3/seed_0")
    assert read_progress(good).step == 20
    before = times(good)
    assert cli(*args[:-2], "--jobs", "1") == 1  # again: only the one that failed
    assert times(good) == before


@pytest.mark.parametrize(
    ("args", "runs", "omp", "threads", "jobs"),
    [
        ((), 1, None, 8, 8),
        ((), 3, None, 2, 8),
        ((), 100, None, 1, 8),
        (("--jobs", "2"), 100, None, 4, 2),
        ((), 1, "1", 1, 8),  # OMP_NUM_THREADS holds for the jobs too
        ((), 3, "6", 2, 8),
        (("--cpus", "3"), 100, "1", 3, 8),  # said outright
    ],
)
def test_runs_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], runs: int, omp: str | None, threads: int, jobs: int
) -> None:
    monkeypatch.setattr("lit_backdoor.cli.engine_options.usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    parser = OneLineParser()
    add_engine_options(parser)
    planned: Any = [None] * runs
    engine, at_a_time = make_engine(parser.parse_args(list(args)), Path("out"), planned, main)
    assert isinstance(engine, LocalEngine)
    assert (engine.threads, at_a_time) == (threads, jobs)


def test_a_job_has_the_threads_that_were_asked_for(cli: Cli, debug_config: Path) -> None:
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert cli(*small_sweep(debug_config, "--set", "trainer.max_steps=2", "--cpus", "2")) == 0
    assert json.loads((RUN / "environment.json").read_text())["threads"] == min(2, usable_cores())
    assert os.environ["OMP_NUM_THREADS"] == "1"  # of this process, as before


@pytest.mark.slow
def test_stopped_and_killed_it_goes_on_with_the_same_command(cli: Cli, debug_config: Path, tmp_path: Path) -> None:
    args = small_sweep(debug_config, "--set", "trainer.max_steps=800", "--cpus", "1")
    with sweeping(args, tmp_path / "log") as process:
        wait_for(lambda: read_progress(RUN).step > 20)
        assert cli(*args) == 2  # a second sweep in the same folder is refused
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: everybody gets it
        assert process.wait(timeout=60) == 130, (tmp_path / "log").read_text()
    assert "the same command goes on" in (tmp_path / "log").read_text()
    stopped_at = read_checkpoint(RUN / "checkpoints" / "last.ckpt")["global_step"]
    assert 20 < stopped_at < 800
    with sweeping(args, tmp_path / "log") as process:
        wait_for(lambda: read_progress(RUN).step > stopped_at + 20)
        os.killpg(process.pid, signal.SIGKILL)  # the sweep and its job
    with sweeping(args, tmp_path / "log") as process:
        killed_at = read_progress(RUN).step
        wait_for(lambda: read_progress(RUN).step > killed_at + 20)
        os.kill(process.pid, signal.SIGKILL)  # the sweep alone: its job goes on
        process.wait()
        assert cli(*args) == 0  # and is found again
    assert cli(*["whole" if arg == "out" else arg for arg in args]) == 0
    assert_same_results(RUN, Path("whole/debug/seed_0"))
