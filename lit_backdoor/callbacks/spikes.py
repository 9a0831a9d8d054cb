"""The loss spikes of the paper's Figure 3."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lit_backdoor.callbacks.run import keeps_files, run_dir
from lit_backdoor.functional import LossSpike, loss_spikes
from lit_backdoor.records import Table, Value


class LossSpikeMonitor(Callback):
    """Finds spikes in the training loss of every step, and writes ``loss_spikes.csv``: when, how high, and how low
    the validation accuracies fell meanwhile.

    Args:
        rise: How far the loss must rise above its recent minimum, in powers of ten.
        window: How far back that minimum is looked for, in optimizer steps.
    """

    def __init__(self, rise: float = 1.0, window: int = 1000) -> None:
        for name, value in (("rise", rise), ("window", window)):
            if not value > 0:
                raise ValueError(f"LossSpikeMonitor.{name}: {value} is too small; above 0")
        self.rise = rise
        self.window = window
        self._losses: list[float] = []
        self._accuracies: dict[str, dict[int, float]] = {}

    def state_dict(self) -> dict[str, Any]:
        """The losses of all steps so far, and the accuracies."""
        return {"losses": torch.tensor(self._losses, dtype=torch.float64), "accuracies": self._accuracies}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self._losses = state_dict["losses"].tolist()
        self._accuracies = state_dict["accuracies"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, *args: Any
    ) -> None:
        """Note the loss: it was measured on the weights before this optimizer step."""
        step = trainer.global_step - 1
        del self._losses[step:]
        loss: Any = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        self._losses += [float("nan")] * (step - len(self._losses))
        self._losses.append(float(loss) if loss is not None else float("nan"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the accuracies."""
        for tag, value in trainer.callback_metrics.items():
            if tag.startswith("val/") and tag.endswith("_accuracy"):
                self._accuracies.setdefault(tag, {})[trainer.global_step] = float(value)

    def spikes(self) -> list[LossSpike]:
        """The spikes so far."""
        return loss_spikes(range(len(self._losses)), self._losses, self.rise, self.window)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        if keeps_files(trainer):
            rows = [self._row(spike) for spike in self.spikes()]
            Table(run_dir(trainer) / "loss_spikes.csv").rewrite(rows, ["step", *_COLUMNS, *self._accuracies])

    def _row(self, spike: LossSpike) -> dict[str, Value]:
        end = len(self._losses) if spike.end_step is None else spike.end_step
        lowest = {
            tag: min((value for step, value in values.items() if spike.start_step <= step <= end), default=float("nan"))
            for tag, values in self._accuracies.items()
        }
        return {
            "step": spike.start_step,
            "peak_step": spike.peak_step,
            "end_step": "" if spike.end_step is None else spike.end_step,
            "base_loss": spike.base_loss,
            "peak_loss": spike.peak_loss,
            **lowest,
        }


_COLUMNS = ("peak_step", "end_step", "base_loss", "peak_loss")
