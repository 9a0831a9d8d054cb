"""The guide's example in two processes on this machine: started, stopped and continued as somebody would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT
from tests.helpers.runs import read_rows

pytestmark = pytest.mark.slow

TRAINER = """
    common = dict(probes=probes, model_attr="net", every_n_steps=5)
    monitors = [OddPatchingMonitor(**common), HeadAttributionMonitor(**common), EmergenceMonitor("repeat")]
    Trainer(
        max_steps=20, accelerator="cpu", devices=2, strategy="ddp", callbacks=[*monitors, RunCheckpoint(10)],
        logger=CSVLogger(".", "", sys.argv[2]), enable_progress_bar=False, enable_model_summary=False,
    ).fit(Repeat(), ckpt_path=sys.argv[3] if len(sys.argv) > 3 else None, weights_only=True)
"""
ODD = """
import os, sys, time
from lightning.pytorch.loggers import CSVLogger
from lit_backdoor.callbacks import RunCheckpoint

class OddPatchingMonitor(HeadPatchingMonitor):  # odd in one of the processes, or endless in both
    def measure(self, model, step, last):
        rank, what = os.environ.get("LOCAL_RANK", "0"), sys.argv[1]
        if step == 15 and what == "raise" + rank:
            raise ArithmeticError("odd")
        if step == 15 and what == "slow" + rank:
            time.sleep(3)
        while step == 15 and what == "endless":
            open("probing" + rank, "w").close()
            super().measure(model, step, last)
        return super().measure(model, step, last)

"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start the example: what is odd, the run's folder, the checkpoint."""
    text = (ROOT / "docs" / "callbacks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    before, main = 'if __name__ == "__main__":\n', code.partition('if __name__ == "__main__":\n')
    (tmp_path / "my_task.py").write_text(main[0] + ODD + before + TRAINER)

    def run(*args: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "my_task.py", *args]
        with (tmp_path / "log").open("w") as log:
            return subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
            )

    return run


def wait_until(seconds: float, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_rows_come_once_where_a_probe_is_slow_and_where_the_run_was_stopped(start: Start, tmp_path: Path) -> None:
    assert start("slow0", "undisturbed").wait(120) == 0, (tmp_path / "log").read_text()
    table = read_rows(tmp_path / "undisturbed" / "head_patching.csv")
    rows = [(row["step"], row["heads"]) for row in table]
    assert len(rows) == len(set(rows)) == 16 + 3 * 6 + 16
    assert list(dict.fromkeys(step for step, _ in rows)) == ["0", "5", "10", "15", "20"]
    assert len(read_rows(tmp_path / "undisturbed" / "head_attribution.csv")) == 5 * 4

    process = start("endless", "stopped")
    wait_until(60, lambda: all((tmp_path / f"probing{rank}").exists() for rank in (0, 1)))
    process.send_signal(signal.SIGTERM)  # the other process gets it from this one; then PyTorch takes its time to exit
    wait_until(5, lambda: (tmp_path / "log").read_text().count("TrainingInterrupted: stopped by SIGTERM") == 2)
    assert process.wait(60) != 0
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 15
    assert start("as usual", "stopped", str(last)).wait(120) == 0, (tmp_path / "log").read_text()
    again = read_rows(tmp_path / "stopped" / "head_patching.csv")
    assert [(row["step"], row["heads"]) for row in again] == rows


def test_a_signal_to_all_processes_saves_as_one_to_the_first_does(start: Start, tmp_path: Path) -> None:
    """As from a job manager: the second process gets it from the first one too, and must not take that for another."""
    process = start("endless", "stopped")
    wait_until(120, lambda: all((tmp_path / f"probing{rank}").exists() for rank in (0, 1)))
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(120) != 0
    assert (tmp_path / "log").read_text().count("TrainingInterrupted: stopped by SIGTERM") == 2
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 15


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all(start: Start, tmp_path: Path, rank: int) -> None:
    process = start(f"raise{rank}", "run")
    assert process.wait(120) != 0
    assert "ArithmeticError: odd" in (tmp_path / "log").read_text()
    assert {row["step"] for row in read_rows(tmp_path / "run" / "head_patching.csv")} <= {"0", "5", "10", "15"}
