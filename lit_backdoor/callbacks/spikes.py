"""The loss spikes of the paper's Figure 3."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lit_backdoor.callbacks.accuracies import AccuracyHistory
from lit_backdoor.callbacks.run import keeps_files, make_run_dir, refuse_existing, run_dir
from lit_backdoor.functional import LossSpike, find_loss_spikes
from lit_backdoor.limits import PositiveNumber, within_limits
from lit_backdoor.runs.file_names import LOSS_SPIKES
from lit_backdoor.runs.schema import Value
from lit_backdoor.runs.tables import CsvTable


class LossSpikeMonitor(AccuracyHistory):
    """Finds spikes in the training loss of every step, and writes ``loss_spikes.csv`` with every validation: when,
    how high, and how low the validation accuracies ``val/<name>_accuracy`` fell meanwhile.

    A spike is a peak, see :func:`lit_backdoor.functional.find_loss_spikes`. One that the run has not come half-way back
    from has no ``end_step`` (it is censored).

    Args:
        prominence: How far a peak must stand out, in powers of ten.
    """

    @within_limits
    def __init__(self, prominence: PositiveNumber = 0.5) -> None:
        super().__init__()
        self.prominence = prominence
        self._losses: list[float] = []
        self._seen_step = 0

    def state_dict(self) -> dict[str, Any]:
        """The losses of all steps so far, and the accuracies."""
        return super().state_dict() | {"losses": torch.tensor(self._losses, dtype=torch.float64)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state_dict)
        self._losses = state_dict["losses"].tolist()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the run directory."""
        if stage == "fit":
            make_run_dir(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that nothing is overwritten."""
        super().on_train_start(trainer, pl_module)
        self._seen_step = trainer.global_step
        refuse_existing(trainer, run_dir(trainer) / LOSS_SPIKES)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, *args: Any
    ) -> None:
        """Note the loss: it was measured on the weights before this optimizer step."""
        step = trainer.global_step - 1
        if trainer.global_step == self._seen_step:
            return  # one of several batches that make a step; the last one speaks for them
        self._seen_step = trainer.global_step
        del self._losses[step:]
        loss: Any = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        self._losses += [float("nan")] * (step - len(self._losses))
        batches = trainer.accumulate_grad_batches  # Lightning divides the loss by it
        self._losses.append(float("nan") if loss is None else float(loss) * batches)

    def spikes(self) -> list[LossSpike]:
        """The spikes so far."""
        return find_loss_spikes(range(len(self._losses)), self._losses, self.prominence)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the table up to date."""
        super().on_validation_end(trainer, pl_module)
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final table."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and keeps_files(trainer):
            rows = [self._row(spike) for spike in self.spikes()]
            names = [f"lowest_{name}_accuracy" for name in self.accuracies]
            CsvTable(run_dir(trainer) / LOSS_SPIKES).rewrite(rows, ["step", *_COLUMNS, *names])

    def _row(self, spike: LossSpike) -> dict[str, Value]:
        end = len(self._losses) if spike.end_step is None else spike.end_step
        lowest = {
            f"lowest_{name}_accuracy": min(
                (value for step, value in values.items() if spike.start_step <= step <= end), default=float("nan")
            )
            for name, values in self.accuracies.items()
        }
        return {
            "step": spike.start_step,
            "peak_step": spike.peak_step,
            "end_step": "" if spike.end_step is None else spike.end_step,
            "prominence": spike.prominence,
            "base_loss": spike.base_loss,
            "peak_loss": spike.peak_loss,
            **lowest,
        }


_COLUMNS = ("peak_step", "end_step", "prominence", "base_loss", "peak_loss")
