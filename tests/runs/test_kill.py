"""Runs that are killed and continued end as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import QUIET, ROOT
from tests.helpers.runs import Cli, assert_same_results


def test_killed_runs_end_like_the_undisturbed_one(tmp_path: Path) -> None:
    """The short form of the benchmark; it compares, and exits with 1 if anything differs."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "benchmarks/soak_kill.py",
        "--kills",
        "5",
        "--steps",
        "60",
        "--seed",
        "2",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("5 kills") and result.stdout.endswith("no difference\n")


def test_a_kill_at_the_very_end_can_be_continued(cli: Cli, debug_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint comes after everything else: who finds it finds the verdict and the last rows too."""
    from lit_backdoor.callbacks import EmergenceMonitor

    args = ("fit", "--config", debug_config, "--trainer.max_steps", 20, *QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(EmergenceMonitor, "on_fit_end", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        child = os.fork()
        if child == 0:
            cli(*args)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    runs = [Path(f"lightning_logs/version_{number}") for number in (0, 1)]
    assert cli(*args, "--ckpt_path", runs[0] / "checkpoints" / "last.ckpt") == 0
    assert cli(*args) == 0
    assert_same_results(*runs)
