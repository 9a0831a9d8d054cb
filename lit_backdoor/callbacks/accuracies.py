"""The validation accuracies of a run, step by step."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class AccuracyHistory(Callback):
    """Notes every ``val/<name>_accuracy`` in ``trainer.callback_metrics``, with the step it was measured at.

    A LightningModule puts it there with ``self.log("val/<name>_accuracy", value)`` in its validation.
    """

    def __init__(self) -> None:
        self.accuracies: dict[str, dict[int, float]] = {}
        """Accuracy, 0 to 1, by name and step."""
        self._noted_start = False
        self._noted: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The accuracies seen so far."""
        return {"accuracies": {name: dict(values) for name, values in self.accuracies.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.accuracies = {name: dict(values) for name, values in state_dict["accuracies"].items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what is measured again from here on."""
        self._noted_start = False
        self.accuracies = {
            name: {step: value for step, value in values.items() if step < trainer.global_step}
            for name, values in self.accuracies.items()
        }

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """A module may have validated the first step as training started."""
        if not self._noted_start:
            self._noted_start = True
            self.note_accuracies(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was measured."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.note_accuracies(trainer)

    def note_accuracies(self, trainer: Trainer) -> None:
        """Note the accuracies that have come since the last time, as those of the present step."""
        for tag, value in trainer.callback_metrics.items():
            if tag.startswith("val/") and tag.endswith("_accuracy") and value is not self._noted.get(tag):
                name = tag.removeprefix("val/").removesuffix("_accuracy")
                self.accuracies.setdefault(name, {})[trainer.global_step] = float(value)
                self._noted[tag] = value
