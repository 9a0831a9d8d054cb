"""LightningCLI for this package: ``fit``, ``validate``, ``test``, with everything checked before a file is written."""

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_backdoor.analysis.measure import analyze
from lit_backdoor.analysis.output import analysis_summary
from lit_backdoor.callbacks import EmergenceMonitor, ProbeCallback
from lit_backdoor.callbacks.run import run_dir
from lit_backdoor.cli import subcommands
from lit_backdoor.cli.option_checks import check_trainer_options, refuse_nulls, refuse_nulls_of_classes
from lit_backdoor.cli.parser import OneLineParser, add_threads_option, checking_options, given_path
from lit_backdoor.cli.run_summary import fit_summary
from lit_backdoor.datamodule import BackdoorDataModule
from lit_backdoor.functional.row_threads import set_row_threads
from lit_backdoor.logger import RunLogger, let_new_events_sort_last
from lit_backdoor.module import BackdoorModule
from lit_backdoor.runs.checkpoints import check_training_state, check_weights, read_checkpoint, require_same
from lit_backdoor.runs.directory import held, results_in
from lit_backdoor.runs.environment import keep_environment
from lit_backdoor.runs.file_names import CHECKPOINT_DIR, CONFIG, LAST, PREVIOUS, continued
from lit_backdoor.runs.tables import copy_tables, read_table

IGNORED_ON_RESUME = frozenset({"last_position"})
IGNORED_ON_EVALUATION = IGNORED_ON_RESUME | {"lr", "weight_decay", "betas", "train_biases", "steps_per_epoch"}


LARGEST_SEED = 2**32 - 1
SRUN_HINT = "The `srun` command is available"
"""What Lightning says wherever Slurm is installed; it is the jobs of a sweep that use it."""


class StorageFailed(Exception):
    """A file of the run could not be written.

    Attributes:
        checkpoint: what to continue from; ``None`` if there is none.
    """

    def __init__(self, error: OSError, directory: Path) -> None:
        where = error.filename or directory
        gone = "" if directory.is_dir() else f"; {directory} was removed while the run wrote into it"
        super().__init__(f"{where} can't be written: {error.strerror or error}{gone}")
        last = directory / CHECKPOINT_DIR / LAST
        self.checkpoint = last if last.exists() else None


class BackdoorCLI(LightningCLI):
    """LightningCLI for :class:`BackdoorModule` and :class:`BackdoorDataModule`, with runs that can be continued."""

    trainer: Trainer

    def __init__(self, args: Sequence[str]) -> None:
        self._started = time.monotonic()
        sys.argv = sys.argv[:1]  # LightningCLI warns about arguments given both ways
        super().__init__(
            BackdoorModule,
            BackdoorDataModule,
            parser_class=OneLineParser,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            load_from_checkpoint_support=False,
            auto_configure_optimizers=False,
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = {"model", "datamodule", "weights_only"}
        return {
            "fit": skipped | {"train_dataloaders", "val_dataloaders"},
            "validate": skipped | {"dataloaders", "verbose"},
            "test": skipped | {"dataloaders", "verbose"},
        }

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Lightning's subcommands, and ours that need no Trainer; those run in :func:`_run_command`."""
        super()._add_subcommands(parser, **kwargs)
        assert parser._subcommands_action is not None  # made by the line above
        for name in subcommands.NAMES:
            one = subcommands.command(name)
            parser._subcommands_action.add_subcommand(name, one.parser(), help=one.HELP)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_threads_option(parser)
        parser.link_arguments("data.moduli", "model.moduli")

    def _parse_ckpt_path(self) -> None:
        """Not Lightning's way (the checkpoint's options silently replace the given ones): they are compared instead,
        in :meth:`instantiate_classes`."""

    def _set_seed(self) -> None:
        """As Lightning does it, and what it does not take is a wrong option."""
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and not 0 <= seed <= LARGEST_SEED:
            self.parser.error(f"seed_everything: {seed} is no seed; allowed: 0 to {LARGEST_SEED}, true or false")
        super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build everything; whatever is wrong with an option shows here, before a file is written."""
        options = self.config[str(self.subcommand)]
        self.save_config_callback: type[SaveConfigCallback] | None
        set_row_threads(options["threads"])
        try:
            given = options["ckpt_path"]
            self._checkpoint = None if given is None else read_checkpoint(given_path("ckpt_path", given))
            refuse_nulls("data", options["data"], BackdoorDataModule.__init__)
            refuse_nulls("model", options["model"], BackdoorModule.__init__)
            refuse_nulls("trainer", options["trainer"], Trainer.__init__)
            refuse_nulls_of_classes(options["trainer"])
            check_trainer_options(options["trainer"])
            if self.subcommand != "fit":
                options["trainer"]["logger"] = False  # nothing to keep: the result is printed
                self.save_config_callback = None
            elif options["trainer"]["logger"] is False:
                self.save_config_callback = None  # no folder of its own to save it in
            elif self._checkpoint is not None:
                self.save_config_kwargs["config_filename"] = continued(CONFIG, self._checkpoint["global_step"])
            with _quiet_lightning():
                super().instantiate_classes()
            if self._checkpoint is not None:
                self._check_checkpoint(Path(given), self._checkpoint)
            if self.subcommand == "fit":
                self._require_steps_left()
                for monitor in self.trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(monitor, (ProbeCallback, EmergenceMonitor)):
                        monitor.check(self.model, self.datamodule, self.trainer.callbacks)  # type: ignore[attr-defined]
        except (ValueError, TypeError, RuntimeError, MemoryError, MisconfigurationException) as error:
            told = str(error)
            if isinstance(error, MemoryError) or "allocate memory" in told:
                told = "data.moduli, model.d_model, ...: so large a task and model need more memory than there is"
            self.parser.error(told)

    def _check_checkpoint(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` if it is not one of this model and task, or, for ``fit``, can't be continued from."""
        fits = self.subcommand == "fit"
        ignored = IGNORED_ON_RESUME if fits else IGNORED_ON_EVALUATION
        require_same(checkpoint["hyper_parameters"], dict(self.model.hparams), "model", ignored)
        require_same(checkpoint["datamodule_hyper_parameters"], dict(self.datamodule.hparams), "data", ignored)
        check_weights(path, checkpoint["state_dict"], self.model)
        if fits:
            check_training_state(path, checkpoint, self.model, self.trainer.callbacks)  # type: ignore[attr-defined]
        else:
            self.model.load_state_dict(checkpoint["state_dict"])
            self.config_init[str(self.subcommand)]["ckpt_path"] = None  # the weights are all that is taken from it

    def _require_steps_left(self) -> None:
        """Raise ``ValueError`` if the checkpoint has already reached ``max_steps``."""
        done = self._checkpoint["global_step"] if self._checkpoint else 0
        if 0 <= self.trainer.max_steps <= done:
            raise ValueError(
                f"trainer.max_steps: {self.trainer.max_steps} steps are done, the checkpoint is at step {done}; "
                "give more to train on"
            )

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """Switch off what the shipped configurations list, where a Trainer flag says so."""
        options = self._get(self.config_init, "trainer")
        if torch.backends.mps.is_available():
            if options["accelerator"] not in ("auto", "cpu"):
                raise ValueError("trainer.accelerator: an Apple GPU has no float64, which the loss needs; use cpu")
            options["accelerator"] = "cpu"
        if options["devices"] == "auto":
            options["devices"] = 1  # all examples are one batch: more devices would only do the same once more
        for flag, kind in (("enable_progress_bar", ProgressBar), ("enable_checkpointing", Checkpoint)):
            if options[flag] is False:
                options["callbacks"] = [one for one in options["callbacks"] or [] if not isinstance(one, kind)]
        return super().instantiate_trainer(**kwargs)

    def fit(self, **kwargs: Any) -> None:
        """Train, in a run directory that no other process works in meanwhile.

        Raises:
            OptionError: before anything is written, if the directory is in use, holds another run, or can't be made.
            StorageFailed: if the disk is full, or the directory is gone.
        """
        if _is_trial(self.trainer):
            return self.trainer.fit(**kwargs, weights_only=True)
        with ExitStack() as stack:
            with checking_options():
                source = self._choose_run_dir()
                directory = run_dir(self.trainer)
                stack.enter_context(held(directory))
                self._prepare_run_dir(directory, source)
            stack.enter_context(_quiet_writers())
            try:
                self._keep_environment(directory)
                self.trainer.fit(**kwargs, weights_only=True)
            except OSError as error:
                raise StorageFailed(error, directory) from error

    def _choose_run_dir(self) -> Path | None:
        """Continue in the run directory of the checkpoint; from any but its last, in a new one with its history.

        Returns:
            the run directory of the checkpoint, if it is in one.
        """
        logger = self.trainer.logger
        ckpt_path = Path(self.config[str(self.subcommand)]["ckpt_path"] or "").resolve()
        if self._checkpoint is None or not isinstance(logger, RunLogger) or ckpt_path.parent.name != CHECKPOINT_DIR:
            return None
        source, step = ckpt_path.parent.parent, self._checkpoint["global_step"]
        if ckpt_path.name in (LAST, PREVIOUS):
            logger.resume(source, step)
        else:
            logger.begin_at(step)
        return source

    def _prepare_run_dir(self, directory: Path, source: Path | None) -> None:
        """Bring the history of a branch; refuse what a fresh run would overwrite, and damaged tables."""
        for path in sorted(source.glob("*.csv")) if source else ():
            read_table(path)
        if source is not None and source.samefile(directory):
            let_new_events_sort_last(directory)
            return
        if self.trainer.logger is not None and (found := results_in(directory)):
            last = directory / CHECKPOINT_DIR / LAST
            how = f"continue it with --ckpt_path {shown(last)}" if last.exists() else "nothing is overwritten"
            raise ValueError(f"RunLogger.version: {shown(found)} is there, from another run; {how}, or choose another")
        if source is not None and self._checkpoint is not None:
            copy_tables(source, directory, before_step=self._checkpoint["global_step"])

    def _keep_environment(self, directory: Path) -> None:
        """Store what a bug report needs, and say if the machine is another than the one that the run began on."""
        if self.trainer.logger is None:
            return
        configs = self.config[str(self.subcommand)].get("config") or []
        beside = Path(str(configs[0])).absolute().parent if configs else Path.cwd()
        step = self._checkpoint["global_step"] if self._checkpoint else None
        if changed := keep_environment(directory, beside, step):
            print(f"note: the last bits may differ from an undisturbed run's: {'; '.join(changed)}", file=sys.stderr)

    def after_test(self) -> None:
        """The same analysis as ``analyze``, printed."""
        step = self._checkpoint["global_step"] if self._checkpoint else 0
        print(analysis_summary(analyze(self.model.model, self.datamodule.task, step), None))

    def after_fit(self) -> None:
        if self.trainer.log_dir is not None and self.trainer.is_global_zero and not _is_trial(self.trainer):
            monitors = [one for one in self.trainer.callbacks if isinstance(one, ProbeCallback)]  # type: ignore[attr-defined]
            probing = sum(monitor.seconds for monitor in monitors)
            print(fit_summary(Path(self.trainer.log_dir), time.monotonic() - self._started, probing))


class CheckedFit(BackdoorCLI):
    """Goes as far as ``fit`` goes before it writes anything: the options are read, checked and instantiated."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def checked_fit_options(args: Sequence[str]) -> Namespace:
    """The options of a ``fit``, complete with their defaults. Exits with 2, as ``fit`` does, if one is wrong."""
    checked = CheckedFit(args)
    return Namespace(checked.config[str(checked.subcommand)])


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning says which devices there are, and that there is Slurm; what may follow is the one line of an error."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=SRUN_HINT)
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


@contextmanager
def _quiet_writers() -> Iterator[None]:
    """TensorBoard's writing thread hands its error on to the main thread; it need not print a traceback as well."""
    original = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            original(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = original


def _is_trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def shown(path: Path) -> str:
    """The path as a user would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
