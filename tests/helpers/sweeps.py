"""Small sweeps, in this process and in their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import ROOT

SMALL = ("--set", "data.moduli=[[11,1]]", "--set", "model.d_model=16", "--set", "model.d_mlp=16")
RUN = Path("out/debug/seed_0")


def small_sweep(config: Path, *more: str) -> list[str]:
    """Arguments of a sweep of one small run, into `out`."""
    return ["sweep", "--config", str(config), *SMALL, "--output_dir", "out", *more]


def wait_for(what: Callable[[], bool], seconds: float = 240) -> None:
    """Look five times a second, and fail after so many seconds."""
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
