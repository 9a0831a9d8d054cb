"""The metrics that a LightningModule records about its rules, step by step."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

Metrics = dict[str, dict[int, float]]
"""What was measured, by name and step."""

NOTED = re.compile(r"(train|val)/.+_accuracy|val/(.+_)?loss")
"""The names of the metrics that are noted."""


class MetricHistory(Callback):
    """Notes ``train/<name>_accuracy``, ``val/<name>_accuracy``, ``val/<name>_loss`` and ``val/loss``.

    A LightningModule puts them into ``trainer.callback_metrics`` with ``self.log("val/<name>_accuracy", value)``. There
    is one history for each Trainer, and whoever needs it gets it from :func:`history_of`.
    """

    def __init__(self) -> None:
        self.metrics: Metrics = {}
        """Changed in place, so that all who read it see the same."""
        self.stopped_step: int | None = None
        """The step whose measurements a signal has stopped."""
        self._noted_start = False
        self._noted: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._seen_step = 0

    def state_dict(self) -> dict[str, Any]:
        """The metrics so far."""
        return {"metrics": {name: dict(values) for name, values in self.metrics.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.metrics.clear()
        self.metrics.update({name: dict(values) for name, values in state_dict["metrics"].items()})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what is measured again from here on."""
        self.stopped_step = None
        self._noted_start = False
        self._seen_step = trainer.global_step
        forget(self.metrics, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """A module may have validated the first step as training started."""
        if not self._noted_start:
            self._noted_start = True
            self._note(trainer.callback_metrics, "val", trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note the training accuracies: where this batch made a step, the weights have just gone beyond them."""
        made_a_step = trainer.global_step != self._seen_step
        self._seen_step = trainer.global_step
        self._note(trainer.callback_metrics, "train", trainer.global_step - int(made_a_step))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was measured."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._note(trainer.callback_metrics, "val", trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the module may add to: before ``on_fit_end`` the Trainer copies it from the accelerator."""
        self._last = trainer.callback_metrics

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A module may have measured the last step once more."""
        self._note(self._last, "train", trainer.global_step)
        self._note(self._last, "val", trainer.global_step)

    def _note(self, metrics: Mapping[str, Tensor], stage: Literal["train", "val"], step: int) -> None:
        """Note the metrics of one stage that have come since the last time, as those of ``step``."""
        for name, value in metrics.items():
            if name.startswith(f"{stage}/") and NOTED.fullmatch(name) and not _is_same(value, self._noted.get(name)):
                self.metrics.setdefault(name, {})[step] = float(value)
                self._noted[name] = value


def _is_same(value: Any, noted: Any) -> bool:
    """Whether a value is the one noted: what ``self.log`` was given comes in a new tensor each time, on one memory."""
    return value is noted or (isinstance(value, Tensor) and isinstance(noted, Tensor) and value.is_set_to(noted))


def history_of(trainer: Trainer) -> MetricHistory:
    """The Trainer's history; made, and put before all other callbacks, by the first who asks."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, MetricHistory):
            return callback
    history = MetricHistory()
    # A new list: Lightning may be walking through the present one, in `setup`.
    trainer.callbacks = [history, *callbacks]  # type: ignore[attr-defined]
    return history


def forget(metrics: Metrics, from_step: int) -> None:
    """Drop what was measured at ``from_step`` and later."""
    for name, values in metrics.items():
        metrics[name] = {step: value for step, value in values.items() if step < from_step}


def older_metrics(state_dict: Mapping[str, Any]) -> Metrics:
    """The metrics in the state of a monitor that kept its own, as checkpoints of version 0.1 have it."""
    accuracies = {f"val/{name}_accuracy": values for name, values in state_dict.get("accuracies", {}).items()}
    return {name: dict(values) for name, values in state_dict.get("metrics", accuracies).items()}


def accuracies(metrics: Metrics) -> Metrics:
    """Every validation accuracy, 0 to 1, by its short name and step."""
    return {
        name.removeprefix("val/").removesuffix("_accuracy"): values
        for name, values in metrics.items()
        if name.startswith("val/") and name.endswith("_accuracy")
    }
