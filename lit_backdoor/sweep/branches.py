"""Many branches of runs that are there: from each checkpoint, every combination of settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_backdoor.runs.branch import read_branch
from lit_backdoor.runs.checkpoints import read_checkpoint
from lit_backdoor.runs.directory import RunStart, as_typed, require_plain_name
from lit_backdoor.sweep.plan import (
    PlannedRun,
    as_arguments,
    combinations,
    named,
    require_end_by_steps,
)
from lit_backdoor.sweep.run_options import training_options, watching_options

ALWAYS_NAMED = "clamp."
"""Options that stand in a branch's name even if they have one value: they are what a branch is about."""


def plan_branches(
    config: Path,
    parents: Sequence[tuple[Path, Path]],
    steps: int,
    settings: Mapping[str, Sequence[Any]],
    check_options: Callable[[Sequence[str]], Namespace],
) -> list[PlannedRun]:
    """A branch from each checkpoint for each combination of ``settings``, beside the run that it leaves.

    The options of each are checked as ``fit`` checks them, without writing anything. A run is named by its last two
    folders, or by as many as it takes to tell all apart.

    Args:
        config: put over each parent's own configuration.
        parents: checkpoints, each with its run's configuration.
        steps: optimizer steps that each branch trains.
        settings: values by option.
        check_options: takes the arguments of a ``fit`` and returns its complete options; exits with 2 if one is wrong.

    Raises:
        ValueError: a checkpoint can't be read, a name can't be a folder's, a folder holds something else, or two
            branches would share one.
        SystemExit: with 2, after one line on stderr, if ``fit`` would refuse an option.
    """
    if not config.is_file():
        raise ValueError(f"config: {config} is not a file; give a configuration of what all branches have in common")
    require_plain_name("config", config.stem)
    runs: dict[Path, PlannedRun] = {}
    for checkpoint, own_config in parents:
        step = _step_of(checkpoint)
        for chosen in combinations(settings):
            shown = [option for option in chosen if len(settings[option]) > 1 or option.startswith(ALWAYS_NAMED)]
            name = "+".join([config.stem, checkpoint.stem, *(named(chosen, option) for option in shown)])
            run_dir = _place(RunStart(checkpoint, step, name))
            if run_dir in runs:
                raise ValueError(f"parents: two branches would share the folder {as_typed(run_dir)}; give each once")
            options = ["--config", str(own_config.absolute()), "--config", str(config.absolute())]
            options += [*as_arguments(chosen), "--trainer.max_steps", str(step + steps)]
            options += ["--trainer.enable_progress_bar", "false"]
            beginning = ("--ckpt_path", str(checkpoint.absolute()))
            checked = check_options(["fit", *options, *beginning])
            require_end_by_steps(checked.trainer, checked.data.steps_per_epoch)
            seed = checked.seed_everything
            runs[run_dir] = PlannedRun(
                name=str(run_dir),
                run_dir=run_dir,
                options=tuple(options),
                max_steps=step + steps,
                hparams={**checked.data.as_dict(), **checked.model.as_dict(), "seed_everything": seed},
                training=training_options(checked.as_dict()),
                watching=watching_options(checked.as_dict()),
                beginning=(*beginning, "--branch", name),
            )
    depth = next(n for n in count(2) if len({run_dir.parts[-n:] for run_dir in runs}) == len(runs))
    return [replace(run, name="/".join(run_dir.parts[-depth:])) for run_dir, run in runs.items()]


def _place(start: RunStart) -> Path:
    """Where a branch begins, or was begun."""
    try:
        place = start.branch_place
    except ValueError as error:
        raise ValueError(f"parents: {str(error).removeprefix('branch: ')}") from None
    assert place is not None and start.checkpoint is not None and start.source is not None  # it has a name
    if place.exists() and not start.owns(place):
        there = read_branch(place) if place.is_dir() else None
        if there is not None and (there.name, there.parent) == (start.branch, start.source.name):
            raise ValueError(
                f"parents: {as_typed(start.checkpoint)} has moved from step {there.step} to step {start.step} since "
                f"{as_typed(place)} left it; give a checkpoint that stays, such as step_*.ckpt, or rename the file of "
                "--config for new branches"
            )
        raise ValueError(f"parents: {as_typed(place)} is there already, and is no such branch; nothing is overwritten")
    return place


def _step_of(checkpoint: Path) -> int:
    try:
        step: int = read_checkpoint(checkpoint)["global_step"]
    except ValueError as error:
        raise ValueError(f"parents: {str(error).removeprefix('ckpt_path: ')}") from None
    return step
