"""The loss spikes of the paper's Figure 3."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lit_backdoor.callbacks.history import Metrics, accuracies, forget, history_of, older_metrics
from lit_backdoor.callbacks.run import RunOutlet, run_of
from lit_backdoor.functional import LossSpike, find_loss_spikes
from lit_backdoor.limits import PositiveNumber, within_limits
from lit_backdoor.runs.file_names import LOSS_SPIKES
from lit_backdoor.runs.schema import Value


class LossSpikeMonitor(Callback):
    """Spikes of the training loss: when, how high, and what they did to the accuracies, into ``loss_spikes.csv``.

    The loss of every step counts. With every validation the table is written again, with how low the accuracies
    ``val/<name>_accuracy`` fell meanwhile. A spike is a peak, see :func:`lit_backdoor.functional.find_loss_spikes`. One
    that the run has not come half-way back from has no ``end_step`` (it is censored).

    Args:
        prominence: How far a peak must stand out, in powers of ten.
    """

    @within_limits
    def __init__(self, prominence: PositiveNumber = 0.5) -> None:
        self.prominence = prominence
        self._losses: list[float] = []
        self._seen_step = 0
        self._run: RunOutlet | None = None
        self._older_metrics: Metrics = {}

    def state_dict(self) -> dict[str, Any]:
        """The losses of all steps so far."""
        return {"losses": torch.tensor(self._losses, dtype=torch.float64)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back; older checkpoints hold the accuracies here too."""
        self._older_metrics = older_metrics(state_dict)
        self._losses = state_dict["losses"].tolist()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make sure that the accuracies are noted."""
        if stage == "fit":
            history_of(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that nothing is overwritten."""
        self._run = run_of(trainer)
        self._run.refuse_existing(LOSS_SPIKES)
        self._seen_step = trainer.global_step
        forget(self._older_metrics, trainer.global_step)
        for name, values in self._older_metrics.items():
            self._run.metrics.setdefault(name, values)

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
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final table."""
        self._write()

    def _write(self) -> None:
        if self._run is not None and (table := self._run.table(LOSS_SPIKES)) is not None:
            curves = accuracies(self._run.metrics)
            rows = [self._row(spike, curves) for spike in self.spikes()]
            table.rewrite(rows, ["step", *_COLUMNS, *(f"lowest_{name}_accuracy" for name in curves)])

    def _row(self, spike: LossSpike, curves: Metrics) -> dict[str, Value]:
        end = len(self._losses) if spike.end_step is None else spike.end_step
        lowest = {
            f"lowest_{name}_accuracy": min(
                (value for step, value in values.items() if spike.start_step <= step <= end), default=float("nan")
            )
            for name, values in curves.items()
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
