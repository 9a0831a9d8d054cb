"""What results/ keeps of a trained run."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers import ROOT


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A copy of the script, which writes beside itself."""
    script = tmp_path / "results" / "cut.py"
    script.parent.mkdir()
    script.write_bytes((ROOT / "results" / "cut.py").read_bytes())
    return script


def test_tables_are_shortened_and_checkpoints_stay_behind(cut: Path, tmp_path: Path) -> None:
    run = tmp_path / "trained" / "runs" / "mod5" / "seed_0"
    (run / "checkpoints" / "weights").mkdir(parents=True)
    for step in (200, 400):
        (run / "checkpoints" / "weights" / f"step_{step:06}.safetensors").write_bytes(b"%d" % step)
    (run / "events.out.tfevents.1").write_text("events")
    (run / "metrics.csv").write_text("step,loss,name\n12769,1.23456789012e-08,none\n400,0.123456789,1_2.3\n")
    (run / "config.yaml").write_text(f"save_dir: {tmp_path}/trained/runs\n")
    command = [sys.executable, cut, "--weights", tmp_path / "trained", run]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    kept = cut.parent / "runs" / "mod5" / "seed_0"
    assert {path.name for path in kept.iterdir()} == {"metrics.csv", "config.yaml", "weights.safetensors"}
    assert (kept / "config.yaml").read_text() == "save_dir: trained/runs\n"
    assert (kept / "weights.safetensors").read_bytes() == b"400"
    assert (kept / "metrics.csv").read_text() == "step,loss,name\n12769,1.2346e-08,none\n400,0.12346,1_2.3\n"
    assert pd.read_csv(kept / "metrics.csv")["step"].tolist() == [12769, 400]
    (kept / "config.yaml").write_text("mine")
    (run.parent / "seed_1").mkdir()
    assert subprocess.run([*command, run.parent / "seed_1"], capture_output=True, timeout=60).returncode == 2
    for file in (run / "config.yaml", run / "metrics.csv"):
        (run.parent / "seed_1" / file.name).write_bytes(file.read_bytes())
    refused = subprocess.run([*command, run.parent / "seed_1"], capture_output=True, timeout=60, text=True)
    assert refused.returncode == 2 and "seed_1 kept none" in refused.stderr
    assert [path.name for path in kept.parent.iterdir()] == ["seed_0"], "something was copied before it was refused"
    command.remove("--weights")
    done = subprocess.run([*command, run.parent / "seed_1"], capture_output=True, timeout=60, text=True)
    assert done.returncode == 0 and "seed_0 is there already" in done.stdout
    assert (kept / "config.yaml").read_text() == "mine" and (kept.parent / "seed_1" / "config.yaml").exists()
