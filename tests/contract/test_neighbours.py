"""Two projects as there are around us, written small: one with Weights & Biases, one with Hydra; and other loggers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from torch import Tensor, nn

from lit_backdoor.callbacks import (
    EmergenceMonitor,
    HeadAttributionMonitor,
    HeadPatchingMonitor,
    LossSpikeMonitor,
    WeightCheckpoint,
)
from tests.helpers.both_kinds import KINDS, make_model
from tests.helpers.copy_task import CopyData, CopyDataWithProbes, copy_probes
from tests.helpers.runs import read_rows

from .conftest import Rows

QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


class Transformer(LightningModule):
    """`self.model` is the hooked model, built from hyperparameters; losses and accuracies are logged by `self.log`."""

    def __init__(self, n_heads: int = 2, d_model: int = 16, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = make_model(KINDS[-1], n_layers=1, n_heads=n_heads, d_model=d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)[:, -1]

    def step(self, batch: list[Tensor], stage: str) -> Tensor:
        logits, answers = self(batch[0]), batch[0][:, 0]
        loss = nn.functional.cross_entropy(logits, answers)
        self.log(f"{stage}/loss", loss)
        self.log(f"{stage}/copy_accuracy", (logits.argmax(-1) == answers).float().mean())
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.step(batch, "val")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)}


def test_weights_and_biases_with_model_checkpoint(tmp_path: Path, wandb: Any) -> None:
    """Twice in one folder: each run has its tables beside its checkpoints, and its pictures in W&B."""
    options: dict[str, Any] = {"every_n_steps": 5, "probes": copy_probes(32)}
    for _ in range(2):
        settings = wandb.Settings(console="off")
        logger = WandbLogger(project="copying", save_dir=tmp_path, offline=True, settings=settings)
        best = ModelCheckpoint(monitor="val/copy_accuracy", mode="max", save_top_k=1, save_last=True)
        stop = EarlyStopping("patching_copy/recipient_accuracy/none", mode="max", stopping_threshold=2.0)
        watch = [HeadAttributionMonitor(**options), HeadPatchingMonitor(**options), EmergenceMonitor("copy")]
        callbacks = [*watch, LossSpikeMonitor(), WeightCheckpoint(5), best, stop]
        torch.manual_seed(0)
        trainer = Trainer(
            **QUIET, max_steps=10, val_check_interval=5, log_every_n_steps=5, logger=logger, callbacks=callbacks
        )
        trainer.fit(Transformer(), CopyData())
        wandb.finish()
        run = Path(best.dirpath).parent  # type: ignore[arg-type]
        assert run == tmp_path / "copying" / logger.version
        tables = {"head_attribution.csv", "head_patching.csv", "emergence.json", "loss_spikes.csv"}
        assert {path.name for path in run.iterdir()} == {"checkpoints", *tables}
        unpatched = [row for row in read_rows(run / "head_patching.csv") if row["heads"] == "none"]
        assert [row["step"] for row in unpatched] == ["0", "5", "10"]
        assert len(list((run / "checkpoints" / "weights").iterdir())) == 3
        Transformer.load_from_checkpoint(best.best_model_path, weights_only=True)
    runs = list((tmp_path / "copying").iterdir())
    pictures = list(tmp_path.glob("wandb/offline-run-*/files/media/images/figures/patching_copy_*.png"))
    assert len(runs) == 2 and len(pictures) == 2


HYDRA = """
module: {_target_: tests.contract.test_neighbours.Transformer, n_heads: 2, lr: 0.01}
data: {_target_: tests.helpers.copy_task.CopyData}
trainer:
  _target_: lightning.pytorch.Trainer
  max_steps: 6
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  logger: false
  default_root_dir: null
  callbacks:
    - _target_: lit_backdoor.callbacks.HeadPatchingMonitor
      every_n_steps: 3
      probes: tests.helpers.copy_task.copy_probes
    - _target_: lit_backdoor.callbacks.HeadPatchingMonitor
      every_n_steps: 3
      name: few
      ablations: [mean, zero]
      probes: {_target_: tests.helpers.copy_task.CopyProbes, n: 16}
    - {_target_: lit_backdoor.callbacks.HeadClamp, heads: [L0H0], mode: donor, donor_tokens: torch.flip_rows}
    - {_target_: lit_backdoor.callbacks.EmergenceMonitor, probe: copy}
"""


def instantiate(config: Any) -> Any:
    """What `hydra.utils.instantiate` does: call each `_target_` with what stands beside it."""
    if isinstance(config, list):
        return [instantiate(item) for item in config]
    if not isinstance(config, dict):
        return config
    options = {name: instantiate(value) for name, value in config.items() if name != "_target_"}
    return resolve_name(config["_target_"])(**options) if "_target_" in config else options


def donors(tokens: Tensor) -> Tensor:
    """Each row's donor starts with another token."""
    return torch.cat([(tokens[:, :1] + 1) % 7, tokens[:, 1:]], dim=1)


def test_a_hydra_application(tmp_path: Path, rows: Rows) -> None:
    config = yaml.safe_load(HYDRA.replace("torch.flip_rows", f"{__name__}.donors"))
    config["trainer"]["default_root_dir"] = str(tmp_path)
    parts = {name: instantiate(part) for name, part in config.items()}
    parts["trainer"].fit(parts["module"], parts["data"])
    for file, n, sets in (("head_patching.csv", "128", 1), ("head_patching_few.csv", "16", 2)):
        table = rows(file)
        assert {row["step"] for row in table} == {"0", "3", "6"} and {row["n_examples"] for row in table} == {n}
        assert len({row["ablation"] for row in table}) == sets
    assert json.loads((tmp_path / "emergence.json").read_text())["probe"] == "copy"


def mlflow(folder: Path) -> Logger:
    pytest.importorskip("mlflow")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it would rather have a database
    return MLFlowLogger("copying", save_dir=str(folder / "mlruns"))


ITS_OWN = pytest.mark.filterwarnings("ignore")  # what MLflow's packages warn of, as they are imported


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda folder: CSVLogger(folder, "csv"), id="CSVLogger"),
        pytest.param(mlflow, id="MLFlowLogger", marks=ITS_OWN),
    ],
)
def test_loggers_without_pictures_get_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    """Twice: each run keeps its own tables."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        monitor = HeadPatchingMonitor(every_n_steps=3)
        watch = [monitor, HeadAttributionMonitor(every_n_steps=3), EmergenceMonitor("copy")]
        logger = make(tmp_path)
        trainer = Trainer(**QUIET, max_steps=6, callbacks=watch, logger=logger, enable_checkpointing=False)
        trainer.fit(Transformer(), CopyDataWithProbes())
        tables = list(tmp_path.rglob("head_patching.csv"))
        assert len(tables) == number
        last = {row["heads"]: row for row in read_rows(max(tables, key=lambda path: path.stat().st_mtime_ns))}
        tag = "patching_copy/logit_diff/L0H1"
        if isinstance(logger, CSVLogger):
            logged = [row[tag] for row in read_rows(Path(logger.log_dir) / "metrics.csv") if row[tag]]
        else:
            logged = [metric.value for metric in logger.experiment.get_metric_history(logger.run_id, tag)]
        assert len(logged) == 3
        assert float(logged[-1]) == pytest.approx(float(last["L0H1"]["logit_diff"]))
