"""A progress bar over the whole run instead of one per epoch."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn

from lit_backdoor.limits import NonNegativeInt, within_limits


class StepProgressBar(TQDMProgressBar):
    """Shows optimizer steps out of ``max_steps``, the time left, the loss and the accuracies.

    Args:
        refresh_rate: Optimizer steps between two updates.
    """

    @within_limits
    def __init__(self, refresh_rate: NonNegativeInt = 10) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=True)

    def init_train_tqdm(self) -> Tqdm:
        """A bar that starts at the step that training starts from."""
        return Tqdm(
            desc="training",
            total=self.trainer.max_steps if self.trainer.max_steps > 0 else None,
            initial=self.trainer.global_step,
            position=2 * self.process_position,
            disable=self.is_disabled,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0.05,
            bar_format=self.BAR_FORMAT,
        )

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Nothing: the bar goes on."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Show the optimizer step."""
        bar, step = self.train_progress_bar, trainer.global_step
        if self.is_enabled and (step % self.refresh_rate == 0 or step == trainer.max_steps):
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            bar.n = step
            bar.refresh()

    def on_train_epoch_end(self, *args: Any) -> None:
        """Nothing: the bar goes on."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A bar of its own, except during training."""
        if trainer.state.fn != TrainerFn.FITTING:
            super().on_validation_start(trainer, pl_module)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Likewise."""
        if trainer.state.fn != TrainerFn.FITTING:
            super().on_validation_batch_start(trainer, *args, **kwargs)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Likewise."""
        if trainer.state.fn != TrainerFn.FITTING:
            super().on_validation_batch_end(trainer, *args, **kwargs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        if trainer.state.fn != TrainerFn.FITTING:
            super().on_validation_end(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:  # type: ignore[override]
        """The training loss and the validation accuracies, in short."""
        metrics = trainer.progress_bar_metrics
        short = {"loss": f"{metrics['train/loss']:.2e}"} if "train/loss" in metrics else {}
        for name, value in metrics.items():
            if name.startswith("val/") and name.endswith("_accuracy"):
                short[name.removeprefix("val/").removesuffix("_accuracy")] = f"{value:.3f}"
        return short
