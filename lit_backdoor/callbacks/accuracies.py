"""The validation accuracies of a run, step by step."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class AccuracyHistory(Callback):
    """Notes every ``val/<rule>_accuracy`` in ``trainer.callback_metrics``, with the step it was measured at."""

    def __init__(self) -> None:
        self.accuracies: dict[str, dict[int, float]] = {}
        """Accuracy by rule and step."""
        self._noted_start = False

    def state_dict(self) -> dict[str, Any]:
        """The accuracies seen so far."""
        return {"accuracies": {rule: dict(values) for rule, values in self.accuracies.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.accuracies = {rule: dict(values) for rule, values in state_dict["accuracies"].items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what is measured again from here on."""
        self._noted_start = False
        self.accuracies = {
            rule: {step: value for step, value in values.items() if step < trainer.global_step}
            for rule, values in self.accuracies.items()
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
        """Note the accuracies as those of the present step."""
        for tag, value in trainer.callback_metrics.items():
            if tag.startswith("val/") and tag.endswith("_accuracy"):
                rule = tag.removeprefix("val/").removesuffix("_accuracy")
                self.accuracies.setdefault(rule, {})[trainer.global_step] = float(value)
