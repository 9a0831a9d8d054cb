"""Checkpoints that survive kills, and a Ctrl-C that loses nothing."""

import io
import os
import random
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_backdoor.callbacks.history import history_of
from lit_backdoor.callbacks.run import run_dir, run_of
from lit_backdoor.limits import PositiveInt, within_limits
from lit_backdoor.runs.file_names import CHECKPOINT_DIR, LAST, PREVIOUS, step_checkpoint
from lit_backdoor.runs.tables import replace_file, replace_with_copy


class TrainingInterrupted(Exception):
    """The run was asked to stop by a signal.

    Attributes:
        signal_number: SIGINT (Ctrl-C) or SIGTERM.
        checkpoint: what to continue from; ``None`` if nothing has been saved.
    """

    def __init__(self, signal_number: int, checkpoint: Path | None) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.checkpoint = checkpoint


class KillSafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and renames it. Lightning's own writes it into the system's temporary
    folder first, and loses files there when it is killed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write the file; a kill or a full disk leaves the old one, or the new one."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        replace_file(Path(path), buffer.getbuffer())


class RunCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` of the run fresh, the one before it, and a few checkpoints along the way.

    A checkpoint of step s holds the weights after s optimizer steps and the random state. Whoever resumes from it
    measures step s again, and forgets what had been measured at s and later. A file is written beside
    its final name and then renamed, so that a kill leaves the old one or the new one, never a broken one. The first is
    written before the first step, the last after everything else that a run writes.

    Ctrl-C and SIGTERM stop what is being measured, let the optimizer step finish, save, and raise
    :class:`TrainingInterrupted`. Ctrl-C after either raises it at once, without saving. SIGTERM after either changes
    nothing: of several processes each gets one from the first process, and another from a job manager that sends it to
    all. Where somebody else handles a signal already (a cluster's job manager), or it is ignored, that stays so.

    Args:
        every_n_steps: Optimizer steps between two writes of last.ckpt.
        keep_every_n_steps: Optimizer steps between two checkpoints that are kept, as step_000000.ckpt; null for none.
    """

    @within_limits
    def __init__(self, every_n_steps: PositiveInt = 250, keep_every_n_steps: PositiveInt | None = 5000) -> None:
        self.every_n_steps = every_n_steps
        self.keep_every_n_steps = keep_every_n_steps
        self._rng_state: dict[str, Any] | None = None
        self._saved_step = -1
        self._last = Path()
        self._last_is_good = False
        self._received: int | None = None
        self._launcher: Any = None
        self._handlers: dict[int, Any] = {}
        self._old_handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The states of all global random generators."""
        return {"rng": _rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them until training starts.

        Raises:
            TypeError, ValueError or RuntimeError: they are none.
        """
        _check_rng_state(state_dict["rng"])
        self._rng_state = state_dict["rng"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue with the random state of the checkpoint, and listen for signals.

        Raises:
            ContractError: a fresh run would overwrite checkpoints.
        """
        run_of(trainer).refuse_existing(f"{CHECKPOINT_DIR}/{LAST}")
        if self._rng_state is not None:
            _set_rng_state(self._rng_state)
            self._rng_state = None
        self._last_is_good = trainer.ckpt_path is not None and _same_file(Path(trainer.ckpt_path), self._last)
        for number, handler in self._handlers.items():
            self._old_handlers[number] = signal.signal(number, handler)
        if not trainer.strategy.broadcast(self._last.exists()):  # all processes save, or none
            self._saved_step = max(trainer.global_step - 1, 0)
            self._save(trainer)
        self._saved_step = trainer.global_step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the run directory."""
        self._last = run_dir(trainer) / CHECKPOINT_DIR / LAST
        self._received = None
        self._launcher = trainer.strategy.launcher
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():  # before Lightning puts handlers of its own there
            for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                present = signal.getsignal(number)
                self._handlers[number] = self._on_signal if present == default else present

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save if it is time.

        Raises:
            TrainingInterrupted: a signal has come, and this step is saved.
        """
        step = trainer.global_step
        if step == trainer.max_steps:
            self._stop_at_the_end(trainer)
            return  # training is over; what the others write at its end comes before its checkpoint
        if step // self.every_n_steps > self._saved_step // self.every_n_steps or self._is_kept(step):
            self._save(trainer)
        if self._asked_to_stop(trainer):
            if step != self._saved_step:
                self._save(trainer)
            raise TrainingInterrupted(self._received or signal.SIGTERM, self._last)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back.

        Raises:
            TrainingInterrupted: a signal has come, and stopped the last measurements.
        """
        self._stop_at_the_end(trainer)
        self._restore_handlers()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last checkpoint, after everything else: with it, the run is complete."""
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore_handlers()

    def _is_kept(self, step: int) -> bool:
        """Whether a step that is kept has come since the last checkpoint."""
        every_n_steps = self.keep_every_n_steps
        return every_n_steps is not None and step // every_n_steps > self._saved_step // every_n_steps

    def _asked_to_stop(self, trainer: Trainer) -> bool:
        """Whether a signal has come to any of the processes; all ask together, and stop together."""
        return trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)

    def _stop_at_the_end(self, trainer: Trainer) -> None:
        """Stop where a signal has stopped the last measurements: the checkpoint before them makes them again."""
        stopped = history_of(trainer).stopped_step == trainer.global_step
        if trainer.strategy.reduce_boolean_decision(stopped, all=False) and self._asked_to_stop(trainer):
            raise TrainingInterrupted(self._received or signal.SIGTERM, self._last if self._last.exists() else None)

    def _save(self, trainer: Trainer) -> None:
        keep = self._is_kept(trainer.global_step)
        self._saved_step = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()  # what was logged before the checkpoint must not be lost after it
        directory = self._last.parent
        if trainer.is_global_zero:
            directory.mkdir(exist_ok=True)  # not the run directory: if somebody removed that, the run has to end
        new = directory / f".{LAST}.new"
        usual = trainer.strategy.checkpoint_io
        trainer.strategy.checkpoint_io = KillSafeCheckpointIO()
        try:
            trainer.save_checkpoint(new, weights_only=False)
            if trainer.is_global_zero:
                if keep:
                    replace_with_copy(directory / step_checkpoint(trainer.global_step), new)
                if self._last_is_good:
                    replace_with_copy(directory / PREVIOUS, self._last)
                os.replace(new, self._last)
        finally:
            trainer.strategy.checkpoint_io = usual
            if trainer.is_global_zero:
                new.unlink(missing_ok=True)
        self._last_is_good = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            if number == signal.SIGINT:
                raise TrainingInterrupted(number, self._last if self._last.exists() else None)
            return
        self._received = number
        if number == signal.SIGTERM and self._launcher is not None:  # a terminal sends Ctrl-C to all processes itself
            self._launcher.kill(number)

    def _restore_handlers(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}


def _same_file(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _rng_state() -> dict[str, Any]:
    """The states of all global generators, in types that a checkpoint may hold without pickling code."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _check_rng_state(state: dict[str, Any]) -> None:
    """Raise what is wrong with a state now, on generators of its own, not when training is about to start."""
    version, internal, gauss = state["python"]
    random.Random().setstate((version, tuple(internal), gauss))
    np.random.RandomState().set_state(_numpy_state(state))
    torch.Generator().set_state(state["torch"].cpu())


def _set_rng_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(_numpy_state(state))
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all([cuda.cpu() for cuda in state["cuda"]])


def _numpy_state(state: dict[str, Any]) -> tuple[Any, ...]:
    name, keys, *rest = state["numpy"]
    return (name, keys.numpy().astype(np.uint32), *rest)
