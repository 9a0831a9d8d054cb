"""``reproduce``: everything that the paper shows, and what our own results rest on, from one command."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from lit_backdoor.cli.checked_cli import checked_fit_options
from lit_backdoor.cli.engine_options import add_engine_options, make_engine
from lit_backdoor.cli.error_messages import suggestion
from lit_backdoor.cli.expected_time import expected_time
from lit_backdoor.cli.main import main
from lit_backdoor.cli.parser import OneLineParser, checking_options, given_path
from lit_backdoor.cli.report import report_on
from lit_backdoor.cli.shipped_configs import find_config
from lit_backdoor.cli.sweep import carry_out
from lit_backdoor.report import folder
from lit_backdoor.runs.directory import locked
from lit_backdoor.runs.verdict import read_verdict
from lit_backdoor.sweep import (
    Engine,
    LocalEngine,
    Part,
    PlannedRun,
    declared_parts,
    known_jobs,
    require_same_options,
    until,
)
from lit_backdoor.sweep.progress import is_done

HELP = "Reproduce the paper, on several seeds and splits: train what is declared, and report on it."
REPORTS = {"runs": "report", "census": "census_report"}
"""Folders of runs, each with that of its report."""


def parser() -> ArgumentParser:
    """The options of ``reproduce``."""
    help_dir = "Folder of the reproduction. What is done in it already is not done again; the rest is continued."
    help_scale = "full: as declared, a day or two on two CPU cores; smoke: a small modulus and few seeds, minutes."
    help_parts = (
        f"Parts to train, joined by commas; null: all. {', '.join(part.name for part in declared_parts('full'))}."
    )
    help_steps = "Stop every run after so many steps, if more are declared; null: what each part declares."
    options = OneLineParser(description=HELP, prog="lit-backdoor reproduce")
    options.add_argument("--output_dir", type=str, required=True, help=help_dir)
    options.add_argument("--scale", type=Literal["full", "smoke"], default="full", help=help_scale)
    options.add_argument("--parts", type=str | None, default=None, help=help_parts)
    options.add_argument("--max_steps", type=PositiveInt | None, default=None, help=help_steps)
    add_engine_options(options)
    return options


def run(options: Namespace) -> int:
    """Bring every run to its end, then report on all.

    Returns:
        0 if everything that is declared is done, 1 if a run failed or too few have fitted, 130 after Ctrl-C.
    """
    with ExitStack() as stack:
        with checking_options():  # of all parts: not only after a day
            output_dir = given_path("output_dir", options.output_dir)
            planned, engines = list[tuple[Part, list[PlannedRun]]](), list[tuple[Engine, int]]()
            for part in chosen_parts(options.parts, options.scale):
                runs = planned_runs(part, output_dir, options.max_steps)
                planned.append((part, runs))
                engines.append(make_engine(options, output_dir / part.folder, runs, main))  # refuses after one part
            for (_, runs), (engine, _) in zip(planned, engines, strict=True):
                require_same_options(runs)
                known_jobs(engine)
            for report_dir in REPORTS.values():
                folder.check(output_dir / report_dir, [])
            engine, jobs = engines[0]
            expected = expected_time(planned, engine, jobs) if isinstance(engine, LocalEngine) else ""
            stack.enter_context(locked(output_dir))
        if expected:
            print(expected, flush=True)
        codes = []
        for (part, runs), (engine, jobs) in zip(planned, engines, strict=True):
            print(f"{part.name}:", flush=True)
            codes.append(train(part, runs, engine, jobs, output_dir / part.folder))
            if codes[-1] == 130:
                return 130
        for runs_dir, report_dir in REPORTS.items():
            if (output_dir / runs_dir).is_dir():
                report_on([output_dir / runs_dir], output_dir / report_dir)
    return max(codes)


def chosen_parts(names: str | None, scale: str) -> list[Part]:
    """The declared parts, or some of them, at the scale that was asked for.

    Raises:
        ValueError: there is no part of that name.
    """
    parts = {part.name: part for part in declared_parts(scale)}
    wanted = list(parts) if names is None else names.split(",")
    for name in wanted:
        if name not in parts:
            raise ValueError(f"parts: '{name[:80]}' is no part{suggestion(name, parts)}; allowed: {', '.join(parts)}")
    return [part for name, part in parts.items() if name in wanted]


def planned_runs(part: Part, output_dir: Path, max_steps: int | None) -> list[PlannedRun]:
    """The runs of a part, each as long as declared, or stopped after ``max_steps``."""
    runs = part.runs(output_dir, find_config, checked_fit_options)
    return runs if max_steps is None else [until(run, min(run.max_steps, max_steps)) for run in runs]


def train(part: Part, runs: Sequence[PlannedRun], engine: Engine, jobs: int, part_dir: Path) -> int:
    """Bring the runs of a part to their ends; the exit code of :func:`run`."""
    if part.fitted is None or part.fit_by is None:
        return carry_out(runs, engine, jobs, part_dir)
    fit_by = min(part.fit_by, runs[0].max_steps)
    left, fitted, unknown, codes = list(runs), list[PlannedRun](), list[PlannedRun](), [0]
    while left and (missing := part.fitted - len(fitted) - len(unknown)) > 0:
        begun, left = left[:missing], left[missing:]
        codes.append(carry_out([until(run, fit_by) for run in begun], engine, jobs, part_dir))
        if codes[-1] == 130:
            return 130
        states = [(run, has_fitted(run, fit_by)) for run in begun]
        fitted += [run for run, state in states if state]
        unknown += [run for run, state in states if state is None]  # no other seed takes its place
    print(f"{len(fitted)} of {len(runs) - len(left)} runs have fitted by step {fit_by}", flush=True)
    if len(fitted) < part.fitted:
        why = "the same command tries those again that failed" if unknown else "there is no seed left to try"
        print(f"{part.fitted} are declared; {why}", flush=True)
        codes.append(1)
    if fitted:
        codes.append(carry_out([until(run, run.max_steps) for run in fitted], engine, jobs, part_dir))
    return max(codes)


def has_fitted(run: PlannedRun, fit_by: int) -> bool | None:
    """Whether a run has fitted its training data by a step; None if it has not come so far, or can't be read."""
    try:
        if not is_done(until(run, fit_by)):
            return None
        step = read_verdict(run.run_dir)["fitted_step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{run.name} can't be read: {error}", flush=True)
        return None
    return step is not None and step <= fit_by
