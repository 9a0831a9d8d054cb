"""Where a run keeps what the callbacks write."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def run_dir(trainer: Trainer) -> Path:
    """The run directory: the logger's, or without one the Trainer's root."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def keeps_files(trainer: Trainer) -> bool:
    """Whether this process writes files at all: not in a ``fast_dev_run``, and only one of several processes."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def tensorboards(trainer: Trainer) -> list[Any]:
    """The SummaryWriters of the Trainer's TensorBoard loggers."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
