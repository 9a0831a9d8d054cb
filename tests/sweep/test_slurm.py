"""``sweep`` with jobs on a real Slurm."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from lit_backdoor.sweep.progress import read_progress
from tests.helpers import ROOT
from tests.helpers.runs import Cli
from tests.helpers.sweeps import RUN, small_sweep, sweeping, wait_for

START_SLURM = ROOT / "tests" / "slurm" / "start-slurm"


@pytest.fixture(scope="module")
def slurm() -> Path:
    """A real Slurm on this machine; skips where it can't be had."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("a Slurm of one's own needs root and Debian's packages slurm-wlm and munge")
    started = subprocess.run([START_SLURM, "2"], capture_output=True, text=True, check=False)
    if shutil.which("slurmctld") is None or started.returncode == 3:
        pytest.skip(f"Slurm can't be installed: {started.stderr.strip().splitlines()[-1:]}")
    assert started.returncode == 0, started.stderr
    return START_SLURM


def queue(form: str) -> list[str]:
    """Something of every job that was submitted from this folder."""
    listed = subprocess.run(["squeue", "-h", "-o", f"{form} %Z"], capture_output=True, text=True, check=True).stdout
    return [value for value, folder in (line.split() for line in listed.splitlines()) if Path(folder) == Path.cwd()]


@pytest.mark.slurm
def test_slurm_jobs_are_requeued_and_cancelled_ones_continue(
    slurm: Path, cli: Cli, debug_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = ("--set", "trainer.max_steps=3000", "--set", "data.steps_per_epoch=100")
    args = small_sweep(debug_config, *steps, "--engine", "slurm", "--partition", "debug", "--cpus", "1", "--time", "30")
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
