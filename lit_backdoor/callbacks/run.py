"""Where a run keeps what the callbacks write, and what they say when something is in the way."""

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger


class ContractError(ValueError):
    """A callback does not find what it needs, or would overwrite something; the message says the fix."""


def check_name(callback: Callback, name: str) -> str:
    """``name``, which becomes part of file names.

    Raises:
        ValueError: if it can't.
    """
    if not re.fullmatch(r"[\w.-]*", name):
        raise ValueError(
            f"{type(callback).__name__}.name: '{name}' can't be part of a file name; letters, digits, _ . -"
        )
    return name


def run_dir(trainer: Trainer) -> Path:
    """The run directory: the logger's, or without one the Trainer's root."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def keeps_files(trainer: Trainer) -> bool:
    """Whether this process writes files at all: not in a ``fast_dev_run``, and only one of several processes."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def refuse_existing(trainer: Trainer, path: Path) -> None:
    """Make sure that a fresh run overwrites nothing: without a logger, all runs share the Trainer's root.

    Raises:
        ContractError: if training starts afresh and ``path`` is there already.
    """
    if trainer.global_step == 0 and keeps_files(trainer) and path.exists():
        raise ContractError(
            f"{path} is there already, from another run; nothing is overwritten: "
            "use a logger, which gives each run a folder, or another trainer.default_root_dir"
        )


def tensorboards(trainer: Trainer) -> list[Any]:
    """The SummaryWriters of the Trainer's TensorBoard loggers."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
