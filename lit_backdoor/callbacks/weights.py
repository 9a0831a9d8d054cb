"""Small checkpoints: the weights alone, often enough to measure a finished run again."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_backdoor.callbacks.as_validated import as_validated, let_averages_come_first
from lit_backdoor.callbacks.run import ContractError, find_model, keeps_files, run_dir, run_of
from lit_backdoor.callbacks.schedule import Schedule
from lit_backdoor.limits import NonNegativeInt, PositiveInt, within_limits
from lit_backdoor.runs.environment import global_seed
from lit_backdoor.runs.file_names import WEIGHTS_DIR, step_weights
from lit_backdoor.runs.weights import describe_model, kept_weights, write_weights


class WeightCheckpoint(Checkpoint):
    """Keeps the hooked model's weights at many steps, for ``python -m lit_backdoor replay``.

    One file for each step, ``checkpoints/weights/step_000400.safetensors``: 0.9 MB for the paper's model. Training
    can't be continued from it; :class:`RunCheckpoint` is for that. Parameters are kept, buffers (a mask, say) are not.

    A file is written beside its final name and then renamed. A fresh run overwrites none. A run that continues from
    step s drops those of s and later that it will write again.

    Weights that a WeightAveraging callback averages are kept as they are validated, averaged.

    Args:
        every_n_steps: Optimizer steps between two files, step 0 included. The last step always has one.
        dense_until: Optimizer step up to which more steps are kept; see :class:`lit_backdoor.callbacks.Schedule`.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
    """

    @within_limits
    def __init__(
        self, every_n_steps: PositiveInt = 100, dense_until: NonNegativeInt = 0, model_attr: str = "model"
    ) -> None:
        self.schedule = Schedule(every_n_steps, dense_until)
        self.model_attr = model_attr
        self._directory: Path | None = None
        self._seen_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a model.

        Raises:
            ContractError: if ``model_attr`` names nothing.
        """
        if stage == "fit":
            let_averages_come_first(trainer)
            find_model(pl_module, self.model_attr, type(self).__name__)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for what is written again, and keep the first step.

        Raises:
            ContractError: a fresh run would overwrite weights.
        """
        run, directory = run_of(trainer), run_dir(trainer)
        self._directory = directory / WEIGHTS_DIR if keeps_files(trainer) else None
        if self._directory is None:
            return
        there = {step: path for step, path in kept_weights(directory).items() if step >= trainer.global_step}
        if run.starts_afresh and any(there):
            raise ContractError(f"{self._directory} holds the weights of another run; nothing is overwritten")
        for step, path in there.items():
            if self.schedule.is_due(step) or step == trainer.max_steps:
                path.unlink()
        self._directory.mkdir(parents=True, exist_ok=True)
        start = trainer.global_step
        self._seen_step = max((step for step in kept_weights(directory) if step < start), default=start - 1)
        self._keep_if_due(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep the weights if it is time."""
        self._keep_if_due(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the last weights."""
        self._keep(trainer, pl_module)

    def _keep_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        if self.schedule.has_come(self._seen_step, trainer.global_step):
            self._keep(trainer, module)
        self._seen_step = trainer.global_step

    def _keep(self, trainer: Trainer, module: LightningModule) -> None:
        if self._directory is None or (path := self._directory / step_weights(trainer.global_step)).exists():
            return
        model = find_model(module, self.model_attr, type(self).__name__)
        data_options: Any = getattr(trainer.datamodule, "hparams", {})  # type: ignore[attr-defined]
        seed = global_seed()
        description = describe_model(model, dict(module.hparams), dict(data_options), trainer.global_step, seed)
        with as_validated(trainer):
            write_weights(path, dict(model.named_parameters()), description)
