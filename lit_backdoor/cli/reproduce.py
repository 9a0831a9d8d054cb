"""``reproduce``: everything that the paper shows, from one command."""

from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from lit_backdoor.cli.checked_cli import checked_fit_options
from lit_backdoor.cli.engine_options import add_engine_options, make_engine
from lit_backdoor.cli.main import main
from lit_backdoor.cli.parser import OneLineParser, checking_options, given_path
from lit_backdoor.cli.report import report_on
from lit_backdoor.cli.shipped_configs import find_config
from lit_backdoor.cli.sweep import carry_out
from lit_backdoor.sweep import PlannedRun, parse_seeds, plan_runs

HELP = "Reproduce the paper: train all its models, and report on them beside the published numbers."
RUNS_DIR = "runs"
REPORT_DIR = "report"
MODELS = {"mod1": 1, "mod7": 7, "mod17": 17, "mod37": 37, "clean": None}
"""The paper's models by their configurations, with their P1."""
SEEDS = {"paper": "0..9", "smoke": "0..2"}


def parser() -> ArgumentParser:
    """The options of ``reproduce``."""
    help_dir = "Folder of the reproduction. What is done in it already is not done again; the rest is continued."
    help_scale = "paper: its models and step counts, a day on two CPU cores; smoke: a small modulus, minutes."
    help_seeds = "Seeds of the mod 1 model; the others take the first. null: 0..9, in the smoke scale 0..2."
    help_steps = "Stop every run after so many steps; null: the configurations' own, as in the paper."
    options = OneLineParser(description=HELP, prog="lit-backdoor reproduce")
    options.add_argument("--output_dir", type=str, required=True, help=help_dir)
    options.add_argument("--scale", type=Literal["paper", "smoke"], default="paper", help=help_scale)
    options.add_argument("--seeds", type=str | None, default=None, help=help_seeds)
    options.add_argument("--max_steps", type=PositiveInt | None, default=None, help=help_steps)
    add_engine_options(options)
    return options


def run(options: Namespace) -> int:
    """Bring every run to its end, then report on all; 0 if all are done, 1 if one failed, 130 after Ctrl-C."""
    from lit_backdoor.report import folder

    with checking_options():
        output_dir = given_path("output_dir", options.output_dir)
        seeds = parse_seeds(SEEDS[options.scale] if options.seeds is None else options.seeds)
        runs = paper_runs(output_dir / RUNS_DIR, options.scale, seeds, options.max_steps)
        engine, jobs = make_engine(options, output_dir, runs, main)
        folder.check(output_dir / REPORT_DIR, [])  # not only after a day
    code = carry_out(runs, engine, jobs, output_dir)
    if code == 130:
        return code
    report_on([output_dir / RUNS_DIR], output_dir / REPORT_DIR)
    return code


def paper_runs(runs_dir: Path, scale: str, seeds: list[int], max_steps: int | None) -> list[PlannedRun]:
    """One run of every model of the paper, then the other seeds of the mod 1 model (Table 2).

    Raises:
        ValueError, SystemExit: see :func:`lit_backdoor.sweep.plan_runs`.
    """
    planned: dict[str, list[PlannedRun]] = {}
    for name, p1 in MODELS.items():
        settings = _small_model(p1) if scale == "smoke" else {}
        if max_steps is not None:
            settings["trainer.max_steps"] = [max_steps]
        chosen = seeds if p1 == 1 else seeds[:1]
        planned[name] = plan_runs(find_config(name), chosen, settings, runs_dir, checked_fit_options)
    return [runs[0] for runs in planned.values()] + [run for runs in planned.values() for run in runs[1:]]


def _small_model(p1: int | None) -> dict[str, list[Any]]:
    """Options of a task and model that take seconds: 41 is the smallest prime with room for the paper's largest P1."""
    return {
        "data.moduli": [[41] if p1 is None else [41, p1]],
        "data.train_fraction": [0.6],
        "model.d_model": [64],
        "model.d_mlp": [128],
        "model.lr": [5e-3],
        "trainer.max_steps": [300],
    }
