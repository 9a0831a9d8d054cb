"""Runs that are killed and continued end as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


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
