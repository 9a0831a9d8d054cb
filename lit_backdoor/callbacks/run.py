"""Where a run keeps what the callbacks write, and what they say when something is in the way."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_backdoor.runs.directory import has_results


class ContractError(ValueError):
    """A callback does not find what it needs, or would overwrite something; the message says the fix."""


def run_dir(trainer: Trainer) -> Path:
    """The run directory: the logger's, or without one the Trainer's root."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def make_run_dir(trainer: Trainer) -> None:
    """Make the run directory before training; it is not made again if somebody removes it meanwhile."""
    if keeps_files(trainer):
        run_dir(trainer).mkdir(parents=True, exist_ok=True)


def keeps_files(trainer: Trainer) -> bool:
    """Whether this process writes files at all: not in a ``fast_dev_run``, and only one of several processes."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def refuse_existing(trainer: Trainer, path: Path) -> None:
    """Make sure that a fresh run overwrites nothing: without a logger, all runs share the Trainer's root.

    Raises:
        ContractError: if training starts afresh and ``path`` holds results of another run.
    """
    if trainer.ckpt_path is None and keeps_files(trainer) and has_results(path):
        raise ContractError(
            f"{path} is there already, from another run; nothing is overwritten: "
            "use a logger, which gives each run a folder, or another trainer.default_root_dir"
        )


def tensorboards(trainer: Trainer) -> list[Any]:
    """The SummaryWriters of the Trainer's TensorBoard loggers."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
