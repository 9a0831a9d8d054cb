"""Which loggers a run has, so that it has a directory of its own."""

from collections.abc import Sequence

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_backdoor.logger import RunLogger


def loggers_of_run(asked_for: Sequence[Logger], root_dir: str | None) -> list[Logger]:
    """The loggers asked for, the one that makes the run directory first.

    The Trainer's log directory is the first logger's. One that makes no directory for each run, such as WandbLogger,
    would have every run write into the same folder; a RunLogger comes before it then.

    Args:
        asked_for: ``trainer.logger`` as a list.
        root_dir: ``trainer.default_root_dir``.
    """
    with_directory = [logger for logger in asked_for if isinstance(logger, (TensorBoardLogger, CSVLogger))]
    if not with_directory:
        return [RunLogger(root_dir or "."), *asked_for]
    first = next((logger for logger in with_directory if isinstance(logger, RunLogger)), with_directory[0])
    return [first, *(logger for logger in asked_for if logger is not first)]
