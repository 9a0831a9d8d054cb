"""docs/callbacks.md and docs/trainers.md: their examples run as they stand there, and all callbacks are listed."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI

from lit_backdoor import callbacks
from tests.helpers import ROOT
from tests.helpers.runs import read_rows

TEXT = (ROOT / "docs" / "callbacks.md").read_text()
TRAINERS = (ROOT / "docs" / "trainers.md").read_text()


def block(language: str, text: str = TEXT) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return found


@pytest.fixture
def my_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example as `my_task.py`, in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "my_task.py"
    path.write_text(block("python"))
    yield path
    sys.modules.pop("my_task", None)


def test_the_guide_is_short() -> None:
    assert len(TEXT.splitlines()) < 80


def test_the_example_runs_and_finds_a_head(my_task: Path) -> None:
    torch.manual_seed(1)
    runpy.run_path(str(my_task), run_name="__main__")
    run = Path("lightning_logs/version_0")
    patching, attribution = read_rows(run / "head_patching.csv"), read_rows(run / "head_attribution.csv")
    steps = [str(step) for step in range(0, 101, 10)]
    for table in (patching, attribution):
        assert list(dict.fromkeys(row["step"] for row in table)) == steps
    last = {row["heads"]: row for row in patching if row["step"] == "100"}
    assert float(last["none"]["recipient_accuracy"]) > 0.9
    verdict = json.loads((run / "emergence.json").read_text())
    head = verdict["head"]
    assert float(last[head]["recipient_accuracy"]) < 0.5 and float(last[head]["donor_accuracy"]) > 0.3
    assert {row["norm"] for row in attribution} == {"frozen LN scale"}


def test_the_yaml_does_the_same(my_task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fit.py"])
    config: dict[str, Any] = {
        "seed_everything": 0,
        "trainer": {"max_steps": 20, "callbacks": yaml.safe_load(block("yaml"))},
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    LightningCLI(import_module("my_task").Repeat, args=["fit", "--config", "config.yaml"])
    run = Path("lightning_logs/version_0")
    assert {row["step"] for row in read_rows(run / "head_patching.csv")} == {"0", "10", "20"}
    assert json.loads((run / "emergence.json").read_text())["probe"] == "repeat"


def test_the_loop_without_a_trainer_runs(my_task: Path) -> None:
    task = import_module("my_task")
    model, batch = task.Repeat().net, torch.randint(10, (64, 6))
    optimizer = torch.optim.Adam(model.parameters())

    def train_one_step(model: Any) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch)[:, -1], batch[:, 0]).backward()
        optimizer.step()

    names = {"model": model, "probes": task.probes, "train_one_step": train_one_step, "n_steps": 20, "accuracy": 0.5}
    exec(block("python", TRAINERS), names)
    assert {row["step"] for row in read_rows(Path("runs/first/head_patching.csv"))} == {"0", "10", "20"}
    assert json.loads(Path("runs/first/emergence.json").read_text())["state"] == "not fitted"


def test_all_callbacks_are_listed() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", TRAINERS, re.MULTILINE))
    ours = {
        name
        for name in callbacks.__all__
        if isinstance(kind := getattr(callbacks, name), type) and issubclass(kind, Callback)
    }
    assert listed == ours - {"ProbeCallback"}


def test_what_the_guide_names_exists() -> None:
    for name in re.findall(r"lit_backdoor\.[\w.]+", TEXT):
        module, _, member = name.rpartition(".")
        assert hasattr(import_module(module), member) or import_module(name), name
