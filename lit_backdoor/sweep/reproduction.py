"""What ``reproduce`` trains, as reproduction.yaml declares it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from lit_backdoor.sweep.plan import PlannedRun, parse_seeds, plan_runs

SPLIT = "data.split_seed"
"""The option of ``fit`` that is crossed with the seeds."""


@dataclass(frozen=True)
class Part:
    """Some runs of one configuration.

    Attributes:
        name: as it is declared.
        folder: where the runs go, below the folder of the reproduction.
        config: the name of a shipped configuration.
        settings: options of ``fit`` that differ from it, each with a list of values.
        seeds: of the weights.
        splits: seeds of the data split.
        fitted: None: every seed is trained on every split. A number: each seed is trained on one split, in turn, until
            so many runs have fitted.
        fit_by: the step by which they must have; None without ``fitted``.
    """

    name: str
    folder: Path
    config: str
    settings: dict[str, list[Any]]
    seeds: list[int]
    splits: list[int]
    fitted: int | None
    fit_by: int | None

    def runs(
        self,
        output_dir: Path,
        find_config: Callable[[str], Path],
        check_options: Callable[[Sequence[str]], Namespace],
    ) -> list[PlannedRun]:
        """Plan all runs, in the order in which they are begun.

        Raises:
            ValueError, SystemExit: see :func:`lit_backdoor.sweep.plan_runs`.
        """
        settings = {**self.settings, SPLIT: self.splits}
        planned = plan_runs(find_config(self.config), self.seeds, settings, output_dir / self.folder, check_options)
        if self.fitted is None:
            return planned
        split_of = {seed: self.splits[index % len(self.splits)] for index, seed in enumerate(self.seeds)}
        in_turn = [run for run in planned if run.hparams["split_seed"] == split_of[run.hparams["seed_everything"]]]
        return sorted(in_turn, key=lambda run: self.seeds.index(run.hparams["seed_everything"]))


def declared_parts(scale: str) -> list[Part]:
    """Read reproduction.yaml.

    Args:
        scale: ``full`` or ``smoke``.
    """
    declared = yaml.safe_load(files("lit_backdoor.sweep").joinpath("reproduction.yaml").read_text(encoding="utf-8"))
    return [
        Part(
            name=name,
            folder=Path(part["folder"]),
            config=part["config"],
            settings={option: [value] for option, value in part.get("set", {}).items()},
            seeds=parse_seeds(str(part["seeds"])),
            splits=parse_seeds(str(part["splits"]), "splits"),
            fitted=part.get("fitted"),
            fit_by=part.get("fit_by"),
        )
        for name, part in declared[scale].items()
    ]


def until(run: PlannedRun, step: int) -> PlannedRun:
    """The same run, as far as ``step``."""
    return replace(run, max_steps=step, options=(*run.options, "--trainer.max_steps", str(step)))
