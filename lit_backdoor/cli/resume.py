"""Continuing from a checkpoint: the run that it belongs to, and whether it fits what is asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from lit_backdoor.callbacks.history import MetricHistory
from lit_backdoor.datamodule import BackdoorDataModule
from lit_backdoor.module import BackdoorModule
from lit_backdoor.runs.checkpoints import check_weights
from lit_backdoor.runs.directory import RunStart, run_of_checkpoint
from lit_backdoor.runs.file_names import HPARAMS
from lit_backdoor.runs.stored import config_files, load
from lit_backdoor.runs.training_state import check_training_state, require_same

IGNORED_ON_RESUME = frozenset({"last_position"})
IGNORED_ON_EVALUATION = IGNORED_ON_RESUME | {"lr", "weight_decay", "betas", "train_biases", "steps_per_epoch"}
OPTIMIZER_OPTIONS = ("optimizer", "lr_scheduler")
"""Hyperparameters of a run that does not use the module's own AdamW."""

HELP_CKPT_PATH = {
    "fit": "A checkpoint to continue from, such as RUN/checkpoints/last.ckpt, in the run's own folder and, without "
    "--config, with its own options; another model or other data are refused",
    "validate": "The checkpoint to validate, such as RUN/checkpoints/last.ckpt",
    "test": "The checkpoint to test, such as RUN/checkpoints/last.ckpt",
}
HELP_BRANCH = (
    "Begin a branch of this name: a run of its own from any checkpoint, in RUN_branch_NAME beside the run that "
    "--ckpt_path lies in, with that checkpoint's optimizer and random state"
)


def stored_config(checkpoint: Path) -> Path | None:
    """The configuration that a checkpoint's run was last started with; ``None`` if the run has none."""
    run = run_of_checkpoint(checkpoint)
    if run is None or not run.is_dir():
        return None
    configs = config_files(run)
    return configs[-1] if configs else None


def stored_seed(checkpoint: Path) -> int | None:
    """The seed that a checkpoint's run began with; ``None`` if that is not known."""
    run = run_of_checkpoint(checkpoint)
    try:
        seed = load(run / HPARAMS)["seed_everything"] if run else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return seed if isinstance(seed, int) else None


def check_checkpoint(
    path: Path,
    checkpoint: Mapping[str, Any],
    module: BackdoorModule,
    datamodule: BackdoorDataModule,
    callbacks: Sequence[Callback] | None,
) -> None:
    """Make sure that a checkpoint is one of this model and task.

    Args:
        callbacks: Of the Trainer that is to continue from it; ``None`` if only the weights are taken.

    Raises:
        ValueError: naming the option or the part of the file that does not fit.
    """
    ignored = IGNORED_ON_EVALUATION if callbacks is None else IGNORED_ON_RESUME
    stored = checkpoint["hyper_parameters"]
    require_same(stored, dict(module.hparams), "model", ignored.union(OPTIMIZER_OPTIONS))
    for option in OPTIMIZER_OPTIONS if callbacks is not None else ():
        if stored.get(option) != module.hparams.get(option):
            raise ValueError(
                f"{option}: {_described(module.hparams.get(option))} does not fit the checkpoint, whose run has "
                f"{_described(stored.get(option))}; use the run's own, or start without --ckpt_path"
            )
    require_same(checkpoint["datamodule_hyper_parameters"], dict(datamodule.hparams), "data", ignored)
    check_weights(path, checkpoint["state_dict"], module)
    if callbacks is not None:
        check_training_state(path, checkpoint, module, [*callbacks, MetricHistory()])  # which comes by itself


def run_start(ckpt_path: str | None, checkpoint: Mapping[str, Any] | None, branch: str | None) -> RunStart:
    """How a run begins.

    Args:
        checkpoint: What ``ckpt_path`` holds.
        branch: Name of the branch that the run is to be.

    Raises:
        ValueError: there can't be such a branch.
    """
    path = None if ckpt_path is None or checkpoint is None else Path(ckpt_path)
    start = RunStart(path, checkpoint["global_step"] if checkpoint else 0, branch)
    _ = start.branch_dir
    return start


def _described(choice: Mapping[str, Any] | None) -> str:
    """An optimizer or schedule in words."""
    if choice is None:
        return "the default"
    options = ", ".join(f"{name} {value}" for name, value in choice["init_args"].items() if value)
    return f"{choice['class_path'].rpartition('.')[2]} ({options})"


def require_steps_left(max_steps: int, checkpoint: Mapping[str, Any] | None) -> None:
    """Make sure that there is something to train.

    Args:
        max_steps: Optimizer steps of the whole run; -1 for no limit.
        checkpoint: What training continues from, if it does.

    Raises:
        ValueError: if ``max_steps`` has been reached.
    """
    done = checkpoint["global_step"] if checkpoint else 0
    if 0 <= max_steps <= done:
        raise ValueError(
            f"trainer.max_steps: {max_steps} steps are done, the checkpoint is at step {done}; give more to train on"
        )
