"""What a LightningModule logs is noted once, under the step it was measured at."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.connectors.logger_connector import logger_connector
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lit_backdoor.callbacks.history import MetricHistory, Metrics
from lit_backdoor.functional import judge_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


class Logs(LightningModule):
    """One weight, ten batches an epoch; logs a number every ten steps, and whatever a subclass adds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.mean = MeanMetric()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_step % 10 == 0:
            self.log("train/x_accuracy", float(self.global_step == 40) / 2 + 0.5)
        self.log("train/step_accuracy", float(self.global_step), on_epoch=True)
        self.log("train/epoch_accuracy", float(self.global_step), on_step=False, on_epoch=True)
        if self.global_step % 20 == 0:
            self.log("train/metric_accuracy", self.mean(self.global_step), on_step=True, on_epoch=False)
        return self.weight.square()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/x_accuracy", 0.25)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.zeros(10))  # type: ignore[arg-type]

    val_dataloader = train_dataloader

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class MeasuresTheEnd(Logs):
    """Puts what it measures after the last step among Lightning's metrics, without `self.log`."""

    def on_train_end(self) -> None:
        self.trainer.callback_metrics["val/x_accuracy"] = torch.tensor(0.25)


def history(folder: Path, module: Logs) -> Metrics:
    noted = MetricHistory()
    stopping = EarlyStopping("val/x_accuracy", patience=100)  # it asks for the metrics too
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    Trainer(
        callbacks=[noted, stopping],
        default_root_dir=folder,
        logger=False,
        accelerator="cpu",
        max_steps=47,
        val_check_interval=20,
        check_val_every_n_epoch=None,
        **quiet,  # type: ignore[arg-type]
    ).fit(module)
    return noted.metrics


@pytest.mark.parametrize("copies", [False, True])
def test_a_value_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: bool) -> None:
    """Also where the Trainer ends with copies of the metrics, as it does after training on an accelerator."""
    if copies:
        monkeypatch.setattr(logger_connector, "move_data_to_device", lambda value, device: value.clone())
    noted = history(tmp_path, Logs())
    assert noted["train/x_accuracy"] == {0: 0.5, 10: 0.5, 20: 0.5, 30: 0.5, 40: 1.0}
    assert judge_run(noted).state == "not fitted"  # four of the last five measurements
    assert noted["val/x_accuracy"] == {20: 0.25, 40: 0.25}
    assert noted["train/metric_accuracy"] == {0: 0.0, 20: 20.0, 40: 40.0}
    # means over an epoch belong to its end; where steps are logged too, both are there
    means = {10: 4.5, 20: 14.5, 30: 24.5, 40: 34.5, 47: 43.0}
    assert noted["train/epoch_accuracy"] == means
    assert noted["train/step_accuracy"] == {step: float(step) for step in range(47)} | {47: 43.0}


@pytest.mark.parametrize("copies", [False, True])
def test_the_last_step_measured_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: bool) -> None:
    if copies:
        monkeypatch.setattr(logger_connector, "move_data_to_device", lambda value, device: value.clone())
    assert history(tmp_path, MeasuresTheEnd())["val/x_accuracy"] == {20: 0.25, 40: 0.25, 47: 0.25}
