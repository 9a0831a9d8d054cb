"""What Lightning and others would print between our lines."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

SRUN_HINT = "The `srun` command is available"
"""What Lightning says wherever Slurm is installed; it is the jobs of a sweep that use it."""

CHATTY = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")


def quiet_process() -> None:
    """Leave out, for the rest of the process, what helps nobody who runs a finished command."""
    for name in CHATTY:
        logging.getLogger(name).addFilter(_is_worth_a_line)
    # Lightning 2.6 calls a name that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    warnings.filterwarnings("ignore", message=SRUN_HINT)
    # Short epochs are fine: losses are logged by optimizer steps, whatever an epoch is.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    # CSVLogger finds the files that the run itself has just written; results of another run are refused before.
    warnings.filterwarnings("ignore", message="Experiment logs directory")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Inside, Lightning does not say which devices there are: what follows may be the line of an error."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=SRUN_HINT)
            # --optimizer replaces the module's own optimizer; that is what it is for.
            warnings.filterwarnings("ignore", message=r".*configure_optimizers` will be overridden")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Inside, a thread's OSError prints no traceback: TensorBoard's writer hands it on to the main thread."""
    original = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            original(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = original


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether our own lines do not say it; the summary of ``fit`` has the verdict."""
    return "Tip:" not in record.getMessage() and not record.getMessage().startswith(("Seed set to", "emergence"))
