"""``sweep``: one configuration, many seeds and settings."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lit_backdoor.cli.checked_cli import checked_fit_options
from lit_backdoor.cli.engine_options import add_engine_options, make_engine
from lit_backdoor.cli.main import main
from lit_backdoor.cli.parser import OneLineParser, checking_options, given_path
from lit_backdoor.cli.resume import stored_config
from lit_backdoor.cli.shipped_configs import find_config
from lit_backdoor.limits import PositiveInt
from lit_backdoor.runs.directory import locked
from lit_backdoor.sweep import (
    SPLIT,
    Engine,
    PlannedRun,
    known_jobs,
    parse_seeds,
    parse_settings,
    plan_branches,
    plan_runs,
    require_same_options,
    run_all,
    watched_otherwise,
)
from lit_backdoor.sweep.scheduler import State, Tracked
from lit_backdoor.sweep.watch import watching

HELP = "Train one configuration with many seeds and settings, side by side, on this machine or a Slurm cluster."
MAX_STEPS = "trainer.max_steps"

GROUPS = (
    *("data", "model", "trainer", "monitors", "clamp", "weights", "checkpoint"),
    *("optimizer", "lr_scheduler"),
)
"""Whose options ``fit`` has."""


class SweepParser(OneLineParser):
    """Says how an option of ``fit`` is given to a sweep."""

    def hint(self, option: str) -> str | None:
        group, dot, _ = option.partition(".")
        if not dot or group not in GROUPS:
            return None
        return f"{option}: this is an option of fit; give it to a sweep with --set {option}=[VALUE,...]"


def parser() -> ArgumentParser:
    """The options of ``sweep``."""
    help_config = (
        "Configuration of fit: a file, or the name of one that ships, such as mod1. With --parents: what the branches "
        "have in common; the rest is each parent's own."
    )
    help_parents = (
        "Instead of seeds: checkpoints, from each of which a branch is trained for every combination of --set, in a "
        "folder beside the run that it leaves."
    )
    help_set = "An option of fit and its values: OPTION=[VALUE,...]. Given again for others; all combinations are run."
    help_dir = (
        "Folder of the sweep. What is done in it already is not done again; the rest is continued. Of branches, only "
        "what their jobs say is in it."
    )
    options = SweepParser(description=HELP, prog="lit-backdoor sweep")
    options.add_argument("--config", type=str, required=True, help=help_config)
    help_seeds = "Seeds: 0..9, or 0,3,7; null: 0, or with --parents each parent's own."
    options.add_argument("--seeds", type=str | None, default=None, help=help_seeds)
    help_splits = "Seeds of the data split, crossed with --seeds: 0..4. null: the configuration's own split."
    options.add_argument("--splits", type=str | None, default=None, help=help_splits)
    options.add_argument("--parents", type=str, nargs="+", default=[], metavar="CHECKPOINT", help=help_parents)
    options.add_argument("--steps", type=PositiveInt | None, default=None, help="Optimizer steps of each branch.")
    options.add_argument("--set", action="append", default=[], metavar="OPTION=[VALUE,...]", help=help_set)
    options.add_argument("--output_dir", type=str, required=True, help=help_dir)
    add_engine_options(options)
    return options


def run(options: Namespace) -> int:
    """Bring every run to its end; 0 if all are done, 1 if one failed, 130 after Ctrl-C."""
    with checking_options():
        output_dir = given_path("output_dir", options.output_dir)
        settings = parse_settings(options.set)
        runs = _branches(options, settings) if options.parents else _runs(options, settings, output_dir)
        engine, jobs = make_engine(options, output_dir, runs, main)
    return carry_out(runs, engine, jobs, output_dir)


def _runs(options: Namespace, settings: dict[str, list[Any]], output_dir: Path) -> list[PlannedRun]:
    """Every combination of settings, splits and seeds."""
    if options.steps is not None:
        raise ValueError(f"steps: {options.steps} is for --parents; here give --set trainer.max_steps={options.steps}")
    seeds = parse_seeds("0" if options.seeds is None else options.seeds)
    if options.splits is not None:
        if SPLIT in settings:
            raise ValueError(f"splits: {options.splits} and --set {SPLIT} say the same; give one of them")
        settings[SPLIT] = parse_seeds(options.splits, "splits")
    return plan_runs(find_config(options.config), seeds, settings, output_dir, checked_fit_options)


def _branches(options: Namespace, settings: dict[str, list[Any]]) -> list[PlannedRun]:
    """Every combination of parents and settings."""
    for name in ("seeds", "splits"):
        if (given := getattr(options, name)) is not None:
            raise ValueError(f"{name}: {given} does not go with --parents; a branch has its parent's")
    if options.steps is None:
        raise ValueError("steps: not given; say how many optimizer steps each branch is to train, such as --steps 300")
    if MAX_STEPS in settings:
        raise ValueError(f"set: {MAX_STEPS} follows from --steps; give that alone")
    parents = []
    for text in options.parents:
        checkpoint = given_path("parents", text)
        if (config := stored_config(checkpoint)) is None:
            raise ValueError(
                f"parents: '{text}' is no checkpoint in a run of fit, such as RUN_DIR/checkpoints/last.ckpt"
            )
        parents.append((checkpoint, config))
    return plan_branches(find_config(options.config), parents, options.steps, settings, checked_fit_options)


def carry_out(runs: Sequence[PlannedRun], engine: Engine, jobs: int, output_dir: Path) -> int:
    """Run what is not done, with a live table, and say how it ended; the exit code."""
    with ExitStack() as stack:
        with checking_options():
            require_same_options(runs)
            known_jobs(engine)  # a damaged list is told of before anything is written
            stack.enter_context(locked(output_dir))
        try:
            tracked = run_all(runs, engine, jobs, stack.enter_context(watching(jobs)))
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from here", file=sys.stderr)
            return 130
    print(outcome(tracked, output_dir))
    with checking_options():
        note = watched_otherwise([run.plan for run in tracked if run.state is State.DONE])
    if note:
        print(note, file=sys.stderr)
    return int(any(run.state is State.FAILED for run in tracked))


def outcome(tracked: Sequence[Tracked], output_dir: Path) -> str:
    """How it ended, for the terminal."""
    failed = [run for run in tracked if run.state is State.FAILED]
    lines = [f"{run.plan.name} failed: {run.message}" for run in failed]
    done = len(tracked) - len(failed)
    lines.append(f"{done} of {len(tracked)} runs are done, in {os.path.relpath(output_dir)}")
    if failed:
        lines.append("the same command tries the others again, from their last checkpoints")
    return "\n".join(lines)
