"""``sweep`` through the command line, with real jobs on this machine."""

import os
import signal
from pathlib import Path

import pytest

from lit_backdoor.runs.checkpoints import read_checkpoint
from lit_backdoor.sweep.progress import read_progress
from tests.helpers.runs import Cli, assert_same_results, times
from tests.helpers.sweeps import RUN, small_sweep, sweeping, wait_for


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
