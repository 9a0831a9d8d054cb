"""Somebody else's LightningCLI: the monitors are only listed in its YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from tests.helpers.copy_task import CopyData, CopyDataWithProbes, CopyModule

from .conftest import Rows

CONFIG = """
seed_everything: 0
trainer:
  max_steps: 10
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: ., name: "", version: run}
  callbacks:
    - class_path: lit_backdoor.callbacks.HeadAttributionMonitor
      init_args: {every_n_steps: 5, model_attr: parts.net}
    - class_path: lit_backdoor.callbacks.HeadPatchingMonitor
      init_args: {every_n_steps: 5, model_attr: parts.net}
    - class_path: lit_backdoor.callbacks.EmergenceMonitor
      init_args: {probe: copy}
"""

SOURCES = {
    "the datamodule's probes()": (CopyDataWithProbes, None, 128),
    "a function": (CopyData, "tests.helpers.copy_task.copy_probes", 128),
    "a class with options": (
        CopyData,
        {"class_path": "tests.helpers.copy_task.CopyProbes", "init_args": {"n": 16}},
        16,
    ),
}


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fit.py"])  # LightningCLI warns about arguments given both ways


def run(datamodule: Any, config: Path) -> None:
    LightningCLI(CopyModule, datamodule, args=["fit", "--config", str(config)])


@pytest.mark.parametrize(("datamodule", "probes", "n"), SOURCES.values(), ids=SOURCES)
def test_callbacks_from_yaml(
    datamodule: Any, probes: Any, n: int, tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(CONFIG)
    if probes is not None:
        for each in config["trainer"]["callbacks"][:2]:
            each["init_args"]["probes"] = probes
    Path("config.yaml").write_text(yaml.safe_dump(config))
    run(datamodule, Path("config.yaml"))
    patching, attribution = rows("run/head_patching.csv"), rows("run/head_attribution.csv")
    assert {row["step"] for row in patching} == {row["step"] for row in attribution} == {"0", "5", "10"}
    assert {(row["probe"], row["n_examples"]) for row in patching + attribution} == {("copy", str(n))}
    assert json.loads(Path("run/emergence.json").read_text())["probe"] == "copy"

    # what Lightning saved is a configuration that does the same again
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    saved["trainer"]["logger"]["init_args"]["version"] = "again"
    Path("again.yaml").write_text(yaml.safe_dump(saved))
    run(datamodule, Path("again.yaml"))
    for name in ("head_patching.csv", "head_attribution.csv", "emergence.json"):
        assert Path("run", name).read_text() == Path("again", name).read_text(), name


def test_a_wrong_function_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(CONFIG)
    config["trainer"]["callbacks"][0]["init_args"]["probes"] = "tests.helpers.copy_task.no_such_function"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stop:
        run(CopyData, tmp_path / "config.yaml")
    assert stop.value.code == 2
    assert "no_such_function" in capsys.readouterr().err
