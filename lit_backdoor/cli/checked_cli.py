"""Reads the options of ``fit``, ``validate`` and ``test``, checks them, and builds everything from them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

import lit_backdoor
from lit_backdoor.callbacks import EmergenceMonitor, HeadClamp, ProbeCallback
from lit_backdoor.cli import subcommands
from lit_backdoor.cli.arguments import prepare_arguments, value_of
from lit_backdoor.cli.loggers import loggers_of_run
from lit_backdoor.cli.named_callbacks import add_named_callbacks, all_callbacks, refuse_nulls_of_named_callbacks
from lit_backdoor.cli.option_checks import as_list, check_trainer_options, refuse_nulls, refuse_nulls_of_classes
from lit_backdoor.cli.parser import OneLineParser, add_threads_option, checking_options, given_path
from lit_backdoor.cli.quiet import quiet_lightning
from lit_backdoor.cli.resume import (
    HELP_BRANCH,
    HELP_CKPT_PATH,
    OPTIMIZER_OPTIONS,
    check_checkpoint,
    require_steps_left,
    run_start,
    stored_seed,
)
from lit_backdoor.datamodule import BackdoorDataModule
from lit_backdoor.functional.row_threads import set_row_threads
from lit_backdoor.limits import plain
from lit_backdoor.logger import RunLogger
from lit_backdoor.module import BackdoorModule
from lit_backdoor.runs.checkpoints import read_checkpoint
from lit_backdoor.runs.file_names import CONFIG, continued

PROGRAM = "lit-backdoor"
DESCRIPTION = "Train a small transformer with a backdoor, and measure while it trains which attention heads it needs."
SUBCOMMANDS = {
    "fit": "Train a model and measure its heads on the way, continue a run, or branch off from it.",
    "validate": "Measure a checkpoint's losses and accuracies on the validation examples.",
    "test": "The same, under the names of a test: there are no examples apart for it.",
}
"""What LightningCLI's own subcommands do."""
DEFAULTS = Path(lit_backdoor.__file__).with_name("defaults.yaml")
"""What LightningCLI reads before any configuration."""

LARGEST_SEED = 2**32 - 1


class CheckedCLI(LightningCLI):
    """LightningCLI for :class:`BackdoorModule` and :class:`BackdoorDataModule`, up to where something would be written.

    The options are read and checked, and everything is built from them; no subcommand runs.
    """

    trainer: Trainer

    def __init__(self, args: Sequence[str]) -> None:
        self._notes: list[str] = []
        sys.argv = sys.argv[:1]  # LightningCLI warns about arguments given both ways
        with checking_options():
            args = prepare_arguments(args, self._notes)
        self._goes_on = value_of(args, "--ckpt_path") is not None
        self._named = args[0] if args and args[0] in self.subcommands() else None
        super().__init__(
            BackdoorModule,
            BackdoorDataModule,
            parser_class=OneLineParser,
            parser_kwargs={
                "prog": PROGRAM,
                "description": DESCRIPTION,
                **{
                    name: {"default_config_files": [str(DEFAULTS)], "description": description}
                    for name, description in SUBCOMMANDS.items()
                },
            },
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            load_from_checkpoint_support=False,
            args=args,
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
        """Lightning's subcommands, and ours that need no Trainer; those run in :func:`_run_command`.

        Where the first argument names a subcommand, the options of the others are never looked at, and not built.
        """
        super()._add_subcommands(parser, **kwargs)
        if self._named is not None:
            return
        assert parser._subcommands_action is not None  # made by the line above
        for listed in parser._subcommands_action._choices_actions:
            listed.help = SUBCOMMANDS[listed.dest]
        for name in subcommands.NAMES:
            command = subcommands.command(name)
            parser._subcommands_action.add_subcommand(name, command.parser(), help=command.HELP)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's options of a subcommand, with our words; ``fit`` has one more."""
        if self._named not in (None, subcommand):
            return self.init_parser()
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        (ckpt_path,) = (action for action in parser._actions if action.dest == "ckpt_path")
        (group,) = (group for group in parser._action_groups if ckpt_path in group._group_actions)
        ckpt_path.help, group.title = HELP_CKPT_PATH[subcommand], "Where to start"
        if subcommand == "fit":
            parser.add_argument("--branch", type=str | None, default=None, help=HELP_BRANCH)
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.add_lightning_class_args(BackdoorDataModule, "data")
        parser.add_lightning_class_args(BackdoorModule, "model")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_threads_option(parser)
        add_named_callbacks(parser)
        for shared in ("moduli", "trigger_tokens"):
            parser.link_arguments(f"data.{shared}", f"model.{shared}")

    def _parse_ckpt_path(self) -> None:
        """Not Lightning's way (the checkpoint's options silently replace the given ones): they are compared instead,
        in :meth:`instantiate_classes`."""

    def _set_seed(self) -> None:
        """Seed as Lightning does it; a run that is continued keeps the seed of its weights."""
        options = self.config[str(self.subcommand)]
        seed = options["seed_everything"]
        if not isinstance(seed, bool) and not 0 <= seed <= LARGEST_SEED:
            self.parser.error(f"seed_everything: {seed} is no seed; allowed: 0 to {LARGEST_SEED}, true or false")
        own = stored_seed(Path(options["ckpt_path"])) if self.subcommand == "fit" and options["ckpt_path"] else None
        if own is not None and own != seed:
            self._notes.append(
                f"seed_everything: {seed} is not used; the weights and the random state are those of the checkpoint, "
                f"whose run began with seed {own}"
            )
            options["seed_everything"] = own
        super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build everything. Whatever is wrong with an option shows here, before a file is written.

        The model comes last: it imports TransformerLens, which takes longer than everything else together.
        """
        try:
            self._check_options()
            with quiet_lightning():
                self.config_init = self.parser.instantiate_classes(self.config, instantiate_groups=False)
                options = self.config_init[str(self.subcommand)]
                self.datamodule = BackdoorDataModule(**options["data"])
                self.trainer = self.instantiate_trainer()
                if self._start.branch is not None and not isinstance(self.trainer.logger, RunLogger):
                    raise ValueError(
                        f"branch: {self._start.branch} has no folder: the Trainer's first logger is no RunLogger"
                    )
                callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
                if self.subcommand == "fit":
                    require_steps_left(self.trainer.max_steps, self._checkpoint)
                    for callback in callbacks:
                        if isinstance(callback, EmergenceMonitor):
                            callback.check(None, self.datamodule, callbacks)  # type: ignore[arg-type]  # needs no model
                self.model = BackdoorModule(**options["model"])
                self._add_configure_optimizers_method_to_model(self.subcommand)
            self._check_with_model(callbacks)
        except (ValueError, TypeError, RuntimeError, MemoryError, MisconfigurationException) as error:
            message = str(error)
            if isinstance(error, MemoryError) or "allocate memory" in message:
                message = "data.moduli, model.d_model, ...: so large a task and model need more memory than there is"
            self.parser.error(message)

    def _check_options(self) -> None:
        """Check what needs no object; decide where the configuration is stored.

        Raises:
            ValueError: naming the option.
        """
        options = self.config[str(self.subcommand)]
        set_row_threads(options["threads"])
        given = options["ckpt_path"]
        if given is not None and not self._goes_on:
            raise ValueError(
                f"ckpt_path: {given} stands in a configuration, as a run that was continued stores it; take it out "
                "there, or give --ckpt_path"
            )
        self._checkpoint = None if given is None else read_checkpoint(given_path("ckpt_path", given))
        branch = options.pop("branch", None)  # not stored: who continues a branch begins none
        self._start = run_start(given, self._checkpoint, branch)
        refuse_nulls("data", options["data"], BackdoorDataModule.__init__)
        refuse_nulls("model", options["model"], BackdoorModule.__init__)
        refuse_nulls("trainer", options["trainer"], Trainer.__init__)
        refuse_nulls_of_classes(options["trainer"])
        refuse_nulls_of_named_callbacks(options)
        check_trainer_options(options["trainer"])
        if options["lr_scheduler"] is not None and options["optimizer"] is None:
            raise ValueError("lr_scheduler: a schedule needs an optimizer: --optimizer AdamW --optimizer.lr 1e-3, say")
        self.save_config_callback: type[SaveConfigCallback] | None
        if self.subcommand != "fit":
            options["trainer"]["logger"] = False  # nothing to keep: the result is printed
            self.save_config_callback = None
        elif options["trainer"]["logger"] is False:
            self.save_config_callback = None  # no folder of its own to save it in
        elif self._checkpoint is not None and self._start.branch is None:
            self.save_config_kwargs["config_filename"] = continued(CONFIG, self._checkpoint["global_step"])

    def _check_with_model(self, callbacks: list[Callback]) -> None:
        """Check what needs the model: the checkpoint, and the monitors.

        Raises:
            ValueError: naming what does not fit.
        """
        fits = self.subcommand == "fit"
        if self._checkpoint is not None:
            path = Path(self.config[str(self.subcommand)]["ckpt_path"])
            check_checkpoint(path, self._checkpoint, self.model, self.datamodule, callbacks if fits else None)
        if fits:
            for callback in callbacks:
                if isinstance(callback, ProbeCallback | HeadClamp):
                    callback.check(self.model, self.datamodule, callbacks)
        elif self._checkpoint is not None:
            self.model.load_state_dict(self._checkpoint["state_dict"])
            self.config_init[str(self.subcommand)]["ckpt_path"] = None  # the weights are all that is taken from it

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Lightning's ``--optimizer`` and ``--lr_scheduler``; the model's hyperparameters then name them too."""
        options = self.config_init[str(subcommand)]
        super()._add_configure_optimizers_method_to_model(subcommand)
        if options["optimizer"] is not None:
            chosen = {name: options[name] and options[name].as_dict() for name in OPTIMIZER_OPTIONS}
            self.model.save_hyperparameters(chosen)

    @staticmethod
    def configure_optimizers(lightning_module: LightningModule, optimizer: Optimizer, lr_scheduler: Any = None) -> Any:
        """Count a schedule in optimizer steps: the epochs here are of no meaning."""
        if lr_scheduler is None:
            return optimizer
        schedule = {"scheduler": lr_scheduler, "interval": "step", "monitor": getattr(lr_scheduler, "monitor", None)}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """Bring the named callbacks, without those that a Trainer flag switches off, and a logger with a run directory.

        Raises:
            ValueError: if an option of a callback is wrong, or the device can't do what is needed.
        """
        options = self._get(self.config_init, "trainer")
        callbacks = all_callbacks(self.config_init[str(self.subcommand)], as_list(options["callbacks"]), self._notes)
        for flag, kind in (("enable_progress_bar", ProgressBar), ("enable_checkpointing", Checkpoint)):
            if options[flag] is False:
                callbacks = [callback for callback in callbacks if not isinstance(callback, kind)]
        if not any(isinstance(callback, ProgressBar) for callback in callbacks):
            options["enable_progress_bar"] = False  # else Lightning brings its own
        options["callbacks"] = callbacks
        if not isinstance(options["logger"], bool):
            options["logger"] = loggers_of_run(as_list(options["logger"]), options["default_root_dir"])
        if torch.backends.mps.is_available():
            if options["accelerator"] not in ("auto", "cpu"):
                raise ValueError("trainer.accelerator: an Apple GPU has no float64, which the loss needs; use cpu")
            options["accelerator"] = "cpu"
        if options["devices"] == "auto":
            options["devices"] = 1  # all examples are one batch: more devices would only do the same once more
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def checked_fit_options(args: Sequence[str]) -> Namespace:
    """The options of a ``fit``, complete with their defaults. Exits with 2, as ``fit`` does, if one is wrong."""
    checked = CheckedCLI(args)
    options: Namespace = checked.config[str(checked.subcommand)].clone()
    for name, value in checked.config[str(checked.subcommand)].items():
        options[name] = plain(value)
    return options
