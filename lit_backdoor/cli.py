"""The command line: ``fit``, ``validate`` and ``test`` through LightningCLI, and the subcommands of ``commands/``."""

import logging
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_backdoor import commands
from lit_backdoor.analysis import analyze, summary
from lit_backdoor.callbacks import ContractError, EmergenceMonitor, ProbeCallback, TrainingInterrupted
from lit_backdoor.callbacks.checkpoint import CHECKPOINT_DIR, LAST
from lit_backdoor.checkpoints import read_checkpoint, require_same
from lit_backdoor.commands.parser import OneLineParser, OptionError
from lit_backdoor.datamodule import BackdoorDataModule
from lit_backdoor.logger import RunLogger
from lit_backdoor.module import BackdoorModule, TrainingDiverged
from lit_backdoor.records import copy_tables
from lit_backdoor.summary import fit_summary

IGNORED_ON_RESUME = frozenset({"last_position"})
IGNORED_ON_EVALUATION = IGNORED_ON_RESUME | {"lr", "weight_decay", "betas", "train_biases", "steps_per_epoch"}


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
        for name in commands.NAMES:
            one = commands.command(name)
            parser._subcommands_action.add_subcommand(name, one.parser(), help=one.HELP)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.moduli", "model.moduli")

    def _parse_ckpt_path(self) -> None:
        """Not Lightning's way (the checkpoint's options silently replace the given ones): they are compared instead,
        in :meth:`instantiate_classes`."""

    def instantiate_classes(self) -> None:
        """Build everything; whatever is wrong with an option shows here, before a file is written."""
        options = self.config[str(self.subcommand)]
        self.save_config_callback: type[SaveConfigCallback] | None
        try:
            self._checkpoint = read_checkpoint(Path(options["ckpt_path"])) if options["ckpt_path"] else None
            if self.subcommand != "fit":
                options["trainer"]["logger"] = False  # nothing to keep: the result is printed
                self.save_config_callback = None
            elif options["trainer"]["logger"] is False:
                self.save_config_callback = None  # no folder of its own to save it in
            elif self._checkpoint is not None:
                self.save_config_kwargs["config_filename"] = f"config_from_step_{self._checkpoint['global_step']}.yaml"
            super().instantiate_classes()
            if self._checkpoint is not None:
                ignored = IGNORED_ON_RESUME if self.subcommand == "fit" else IGNORED_ON_EVALUATION
                require_same(self._checkpoint["hyper_parameters"], dict(self.model.hparams), "model", ignored)
                data = self._checkpoint["datamodule_hyper_parameters"]
                require_same(data, dict(self.datamodule.hparams), "data", ignored)
            if self.subcommand == "fit":
                self._require_steps_left()
                for monitor in self.trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(monitor, (ProbeCallback, EmergenceMonitor)):
                        monitor.check(self.model, self.datamodule, self.trainer.callbacks)  # type: ignore[attr-defined]
        except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
            self.parser.error(str(error))

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
        for flag, kind in (("enable_progress_bar", ProgressBar), ("enable_checkpointing", Checkpoint)):
            if options[flag] is False:
                options["callbacks"] = [one for one in options["callbacks"] or [] if not isinstance(one, kind)]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Continue in the run directory of the checkpoint; from any but its last, in a new one with its history."""
        if self._checkpoint is None:
            return
        ckpt_path = Path(self.config[str(self.subcommand)]["ckpt_path"]).resolve()
        step = self._checkpoint["global_step"]
        run_dir = ckpt_path.parent.parent
        logger = self.trainer.logger
        if not isinstance(logger, RunLogger) or ckpt_path.parent.name != CHECKPOINT_DIR:
            return
        if ckpt_path.name == LAST:
            logger.resume(run_dir, step)
        else:
            copy_tables(run_dir, Path(logger.log_dir), before_step=step)

    def after_test(self) -> None:
        """The same analysis as ``analyze``, printed."""
        step = self._checkpoint["global_step"] if self._checkpoint else 0
        print(summary(analyze(self.model.model, self.datamodule.task, step), None))

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
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The `srun` command is available")  # it is the jobs that use it
            checked = CheckedFit(args)
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
    return Namespace(checked.config[str(checked.subcommand)])


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 (diverged), 2 (wrong option), 130 or 143 (stopped)."""
    args = list(sys.argv[1:] if args is None else args)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    # Lightning 2.6 calls a name that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    try:
        if args and args[0] in commands.NAMES:
            return _run_command(args[0], args[1:])
        BackdoorCLI(args)
    except TrainingInterrupted as interruption:
        command = ["python", "-m", "lit_backdoor", *_without_option(args, "--ckpt_path")]
        if interruption.checkpoint is not None:
            command += ["--ckpt_path", _shown(interruption.checkpoint)]
        print(f"\n{interruption}. Continue with:\n  {shlex.join(command)}", file=sys.stderr)
        return 128 + interruption.signal_number
    except TrainingDiverged as divergence:
        print(f"\nerror: {divergence}; the last good checkpoint stays. A smaller --model.lr may help.", file=sys.stderr)
        return 1
    except ContractError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's way with a Ctrl-C before the first step
            return 128 + signal.SIGINT
        raise
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _run_command(name: str, args: Sequence[str]) -> int:
    one = commands.command(name)
    parser = one.parser()
    options = parser.parse_args(list(args))
    try:
        return one.run(options)
    except OptionError as error:
        parser.error(str(error))


def _is_trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def _without_option(args: Sequence[str], option: str) -> list[str]:
    """The arguments without ``option`` and its value."""
    kept, skip = [], False
    for arg in args:
        if not skip and arg != option and not arg.startswith(f"{option}="):
            kept.append(arg)
        skip = arg == option
    return kept


def _shown(path: Path) -> str:
    """The path as a user would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
