"""The metrics that a LightningModule records about its rules, step by step."""

import re
from typing import Any, ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class AccuracyHistory(Callback):
    """Notes every ``val/<name>_accuracy`` in ``trainer.callback_metrics``, with the step it was measured at.

    A LightningModule puts it there with ``self.log("val/<name>_accuracy", value)`` in its validation.
    """

    noted: ClassVar[re.Pattern[str]] = re.compile(r"val/.+_accuracy")
    """The names of the metrics that are noted."""

    def __init__(self) -> None:
        self.metrics: dict[str, dict[int, float]] = {}
        """What was measured, by name and step."""
        self._noted_start = False
        self._noted: dict[str, Tensor] = {}

    @property
    def accuracies(self) -> dict[str, dict[int, float]]:
        """Every validation accuracy, 0 to 1, by its short name and step."""
        return {
            name.removeprefix("val/").removesuffix("_accuracy"): values
            for name, values in self.metrics.items()
            if name.startswith("val/") and name.endswith("_accuracy")
        }

    def state_dict(self) -> dict[str, Any]:
        """The metrics seen so far."""
        return {"metrics": {name: dict(values) for name, values in self.metrics.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back; older checkpoints hold the validation accuracies by their short names."""
        older = {f"val/{name}_accuracy": values for name, values in state_dict.get("accuracies", {}).items()}
        self.metrics = {name: dict(values) for name, values in state_dict.get("metrics", older).items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what is measured again from here on."""
        self._noted_start = False
        self.metrics = {
            name: {step: value for step, value in values.items() if step < trainer.global_step}
            for name, values in self.metrics.items()
        }

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """A module may have validated the first step as training started."""
        if not self._noted_start:
            self._noted_start = True
            self.note_metrics(trainer, "val", trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was measured."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.note_metrics(trainer, "val", trainer.global_step)

    def note_metrics(self, trainer: Trainer, stage: Literal["train", "val"], step: int) -> None:
        """Note the metrics of one stage that have come since the last time, as those of ``step``."""
        for name, value in trainer.callback_metrics.items():
            if name.startswith(f"{stage}/") and self.noted.fullmatch(name) and value is not self._noted.get(name):
                self.metrics.setdefault(name, {})[step] = float(value)
                self._noted[name] = value
