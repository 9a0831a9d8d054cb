"""``sweep`` through the command line, with real jobs: on this machine, and on a real Slurm."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lit_backdoor.runs.checkpoints import read_checkpoint
from lit_backdoor.sweep.progress import read_progress
from tests.conftest import ROOT

START_SLURM = ROOT / "tests" / "slurm" / "start-slurm"
SMALL = ("--set", "data.moduli=[[11,1]]", "--set", "model.d_model=16", "--set", "model.d_mlp=16")
RUN = Path("out/debug/seed_0")


def arguments(config: Path, *more: str) -> list[str]:
    return ["sweep", "--config", str(config), *SMALL, "--output_dir", "out", *more]


def wait_for(what: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)


@contextmanager
def sweeping(args: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A sweep in a process (and a process group, as a terminal has it) of its own."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lit_backdoor", *args],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_one_that_dies_takes_no_other_with_it(
    cli: Callable[..., int], debug_config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = arguments(debug_config, "--set", "trainer.max_steps=20", "--set", "model.lr=[1e-3,1e30]", "--jobs", "2")
    assert cli(*args) == 1
    told = capfd.readouterr()
    assert "debug+model.lr=1e30/seed_0 failed: error:" in told.out and "1 of 2 runs are done" in told.out
    good = Path("out/debug+model.lr=1e-3/seed_0")
    assert read_progress(good).step == 20
    before = {path: path.stat().st_mtime_ns for path in good.rglob("*")}
    assert cli(*args[:-2], "--jobs", "1") == 1  # again: only the one that failed
    assert {path: path.stat().st_mtime_ns for path in good.rglob("*")} == before


def test_stopped_and_killed_it_goes_on_with_the_same_command(
    cli: Callable[..., int], debug_config: Path, tmp_path: Path
) -> None:
    args = arguments(debug_config, "--set", "trainer.max_steps=800", "--cpus", "1")
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
    one, other = (
        read_checkpoint(Path(d, "debug/seed_0/checkpoints/last.ckpt"))["state_dict"] for d in ("out", "whole")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    for table in ("metrics.csv", "head_attribution.csv", "head_patching.csv", "emergence.json"):
        assert (RUN / table).read_text() == Path("whole/debug/seed_0", table).read_text(), table


@pytest.fixture(scope="module")
def slurm() -> Path:
    """A real Slurm on this machine; skips where it can't be had."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("a Slurm of one's own needs root and Debian's packages slurm-wlm and munge")
    started = subprocess.run([START_SLURM, "2"], capture_output=True, text=True, check=False)
    if shutil.which("slurmctld") is None:
        pytest.skip(f"Slurm can't be installed: {started.stderr.strip().splitlines()[-1:]}")
    assert started.returncode == 0, started.stderr
    return START_SLURM


def queue(form: str) -> list[str]:
    """Something of every job that was submitted from this folder."""
    listed = subprocess.run(["squeue", "-h", "-o", f"{form} %Z"], capture_output=True, text=True, check=True).stdout
    return [value for value, folder in (line.split() for line in listed.splitlines()) if Path(folder) == Path.cwd()]


def test_slurm_jobs_are_requeued_and_cancelled_ones_continue(
    slurm: Path, cli: Callable[..., int], debug_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = ("--set", "trainer.max_steps=3000", "--set", "data.steps_per_epoch=100")
    args = arguments(debug_config, *steps, "--engine", "slurm", "--partition", "debug", "--cpus", "1", "--time", "30")
    with sweeping(args, tmp_path / "log") as process:
        wait_for(lambda: (RUN / "checkpoints" / "last.ckpt").exists())
        (job,) = queue("%i")
        subprocess.run(["scancel", "--signal=USR2", job], check=True)  # what Slurm sends before it takes a node away
        wait_for(lambda: queue("%t") == ["PD"])  # in the queue again, by itself
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert queue("%i") == [job]  # the cluster's jobs go on without the sweep
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    requeued_at = read_progress(RUN).step
    with sweeping(args, tmp_path / "log2") as process:  # finds the job again
        wait_for(lambda: read_progress(RUN).step > requeued_at + 50)
        assert queue("%i") == [job]
        subprocess.run(["scancel", job], check=True)
        assert process.wait(timeout=120) == 1
    assert "debug/seed_0 failed" in (tmp_path / "log2").read_text()
    cancelled_at = read_progress(RUN).step
    assert 0 < cancelled_at < 3000
    assert cli(*args) == 0, capfd.readouterr().err
    assert queue("%i") == []
    assert read_progress(RUN).step == 3000
    with (RUN / "metrics.csv").open() as file:
        assert [line.split(",")[0] for line in file][1:] == [str(step) for step in range(0, 3001, 10)]
