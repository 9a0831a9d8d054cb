"""The run that the callbacks watch: where it keeps its files, and where their results go."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_backdoor.callbacks.as_validated import as_validated
from lit_backdoor.callbacks.charts import Charts
from lit_backdoor.callbacks.history import Metrics, history_of
from lit_backdoor.callbacks.loggers import show_charts, show_figure, show_text
from lit_backdoor.runs.directory import has_results
from lit_backdoor.runs.tables import CsvTable, replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ContractError(ValueError):
    """A callback does not find what it needs, or would overwrite something; the message says the fix."""


class RunOutlet:
    """Takes the results of monitors: tables and files into the run directory, all else to the loggers.

    Args:
        directory: The run directory; None keeps no files.
        loggers: Lightning's. Each gets the numbers, and of figures and texts what it can show.
        metrics: What has been measured about the rules; see :class:`lit_backdoor.callbacks.history.MetricHistory`.
        starts_afresh: Whether files that are there already belong to another run.
        callback_metrics: Gets the last value of every number too, for Lightning's other callbacks.
        measuring: Makes the context that monitors measure in.
    """

    def __init__(
        self,
        directory: Path | None,
        loggers: Sequence[Logger],
        metrics: Metrics,
        starts_afresh: bool = True,
        callback_metrics: MutableMapping[str, Any] | None = None,
        measuring: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.directory = directory
        self.loggers = loggers
        self.metrics = metrics
        self.starts_afresh = starts_afresh
        self.measuring = measuring
        self._callback_metrics = {} if callback_metrics is None else callback_metrics

    def refuse_existing(self, file_name: str) -> None:
        """Make sure that a fresh run overwrites nothing: without a logger, all runs share the Trainer's root.

        Raises:
            ContractError: if it starts afresh and ``file_name`` holds results of another run.
        """
        if self.starts_afresh and self.directory is not None and has_results(self.directory / file_name):
            raise ContractError(
                f"{self.directory / file_name} is there already, from another run; nothing is overwritten: "
                "use a logger, which gives each run a folder, or another trainer.default_root_dir"
            )

    def table(self, file_name: str) -> CsvTable | None:
        """A table of the run directory; None if no files are kept."""
        return CsvTable(self.directory / file_name) if self.directory is not None else None

    def write(self, file_name: str, text: str) -> None:
        """Write a file of the run directory at once."""
        if self.directory is not None:
            replace_file(self.directory / file_name, text)

    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Give scalars to every logger, under this step."""
        for logger in self.loggers:
            logger.log_metrics(dict(numbers), step=step)
        self._callback_metrics.update({tag: torch.tensor(value) for tag, value in numbers.items()})

    def show_figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Give a figure to every logger that shows figures."""
        for logger in self.loggers:
            show_figure(logger, tag, figure, step)

    def show_text(self, tag: str, markdown: str, step: int) -> None:
        """Give a text to every logger that shows texts."""
        for logger in self.loggers:
            show_text(logger, tag, markdown, step)

    def show_charts(self, charts: Charts) -> None:
        """Lay out the charts."""
        for logger in self.loggers:
            show_charts(logger, charts)

    def flush(self) -> None:
        """Bring to the disk what the loggers have."""
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
            else:
                logger.save()


def find_model(module: Any, model_attr: str, asker: str) -> Any:
    """The hooked model at ``model_attr`` of a LightningModule; dots go deeper.

    Raises:
        ContractError: if there is nothing; the message names the ``asker``.
    """
    model = module
    for part in model_attr.split("."):
        if not hasattr(model, part):
            raise ContractError(
                f"{asker}.model_attr: {type(module).__name__} has no '{model_attr}'; "
                "name the attribute that holds the hooked model"
            )
        model = getattr(model, part)
    return model


def imported(option: str, value: Any) -> Any:
    """What a dotted name stands for, as Hydra hands it over; whatever is no text, as it is.

    Raises:
        ContractError: naming the option, if there is nothing of that name.
    """
    if not isinstance(value, str):
        return value
    try:
        return resolve_name(value)
    except (ImportError, AttributeError, ValueError) as error:
        raise ContractError(f"{option}: '{value}' can't be imported: {error}") from None


def run_dir(trainer: Trainer) -> Path:
    """The run directory: the first logger's, or without one the Trainer's root. All processes have to ask together.

    A logger that has a name and a version, but no directory of a run, such as WandbLogger or MLFlowLogger, gets the one
    in which Lightning keeps its checkpoints: ``save_dir/name/version``.
    """
    logger = trainer.logger
    if logger is None or isinstance(logger, (TensorBoardLogger, CSVLogger)):
        return Path(trainer.log_dir or trainer.default_root_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    directory = Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
    return trainer.strategy.broadcast(directory)


def keeps_files(trainer: Trainer) -> bool:
    """Whether this process writes files at all: not in a ``fast_dev_run``, and only one of several processes."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def run_of(trainer: Trainer) -> RunOutlet:
    """The run of a Trainer that is about to train, with its directory made. All processes have to ask together.

    The directory is not made again if somebody removes it meanwhile.
    """
    directory = run_dir(trainer)
    if keeps_files(trainer):
        directory.mkdir(parents=True, exist_ok=True)
    return RunOutlet(
        directory if keeps_files(trainer) else None,
        trainer.loggers,
        history_of(trainer).metrics,
        starts_afresh=trainer.ckpt_path is None and trainer.global_step == 0,  # else `fit` was called once more
        callback_metrics=trainer.callback_metrics,
        measuring=partial(as_validated, trainer),
    )
