"""Which runs stand beside each other: those compared with the paper, their controls, branches, and other tasks."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import chain, combinations, groupby
from math import inf
from pathlib import Path
from typing import Any

import yaml

from lit_backdoor.report.branches import ComparedBranch, weight_distances
from lit_backdoor.report.declared import declared
from lit_backdoor.report.measures import groups
from lit_backdoor.report.published import paper_steps
from lit_backdoor.runs.removed import RemovedModel
from lit_backdoor.runs.run import Run, last_folders, told_apart
from lit_backdoor.show.wording import span

FREE_OPTIONS = frozenset({"seed_everything", "moduli", "last_position", "steps_per_epoch", "split_seed"})
"""Options in which the main runs may differ: what is compared, and what changes nothing in a result."""


@cache
def paper_options() -> dict[str, Any]:
    """The paper's task and model, Appendices A to C, which are what a run does unless it is told otherwise."""
    defaults = yaml.safe_load((files("lit_backdoor") / "defaults.yaml").read_text(encoding="utf-8"))
    options = {"P0": 113, **defaults["data"], **defaults["model"]}
    return {name: value for name, value in options.items() if name not in FREE_OPTIONS}


@dataclass(frozen=True)
class Study:
    """The runs of one report.

    Attributes:
        runs: alike in every option but P1, seed and split; the `group` of each says its model, and its series where
            there are several. All statements are about them, group by group.
        controls: of our task, but different in another option, untrained, or with a trigger that switches nothing:
            each run with what is different.
        branches: that began from another run's checkpoint, each with its control: a branch that is like it but for
            the clamp, else the run it branched off, if that is among `runs`.
        others: of other tasks, or with several triggers.
        removed: models whose backdoors were removed, by `analyze --removal`.
        just_started: directories of runs that are left out, as there is nothing to report of them yet.
    """

    runs: Sequence[Run]
    controls: Sequence[tuple[Run, str]]
    branches: Sequence[ComparedBranch]
    others: Sequence[Run]
    removed: Sequence[RemovedModel] = ()
    just_started: Sequence[Path] = ()

    @property
    def compared(self) -> list[Run]:
        """Of every model the runs that stand beside the paper: its longest series that has enough runs for a verdict.

        Its longest where none has; of several as long, the first.
        """
        series: dict[int | None, list[list[Run]]] = {None: [[run for run in self.runs if run.p1 is None]]}
        for group in groups(self.runs).values():
            series.setdefault(group[0].p1, []).append(group)

        def rank(group: Sequence[Run]) -> tuple[bool, int]:
            return len(group) >= declared().min_seeds, max((run.step for run in group), default=0)

        return [run for of_model in series.values() for run in max(of_model, key=rank)]

    @property
    def lengths(self) -> list[tuple[list[Run], list[Run]]]:
        """Of every model with runs of several lengths in one folder: those asked for most steps, and the others."""
        by_place: dict[tuple[int | None, Path], dict[float, list[Run]]] = {}
        for run in self.runs:
            steps = inf if run.max_steps is None else run.max_steps
            by_place.setdefault((run.p1, _folder(run)), {}).setdefault(steps, []).append(run)
        several = [by_steps for by_steps in by_place.values() if len(by_steps) > 1]
        return [(by_steps.pop(max(by_steps)), [*chain(*by_steps.values())]) for by_steps in several]

    @property
    def differs_from_paper(self) -> list[str]:
        """What keeps the runs from being judged beside the paper, as `name: value`."""
        if not self.runs:
            return []
        steps, theirs = [run.step for run in self.compared if run.p1 == 1], paper_steps(1)
        short = theirs is not None and any(step < declared().least_of_papers_steps * theirs for step in steps)
        return differing(self.runs[0], paper_options()) + ([f"steps of mod 1: {span(steps)}"] if short else [])


def arrange(runs: Sequence[Run]) -> Study:
    """Tell the runs apart. The main ones have the options that most runs share.

    Raises:
        ValueError: two of the main runs are of the same series, P1, seed and split, or one is a copy of the other; or
            weights that a branch or its control kept can't be compared.
    """
    ours = [run for run in runs if run.task is not None and run.parent is None]
    counts = Counter(repr(_options(run)) for run in ours if not _switches_nothing(run))
    alike = max(counts, key=lambda key: counts[key]) if counts else None
    found = [run for run in ours if repr(_options(run)) == alike and not _switches_nothing(run)]
    main = _by_series(found)
    for run, other in combinations(main, 2):
        copied = _without_series(run) == _without_series(other) and run.metrics.equals(other.metrics)
        if run.name == other.name or copied:
            raise ValueError(f"run_dirs: {run.path} and {other.path} are both {_without_series(run)}; give one of them")
    controls = [(run, _difference(run, main)) for run in ours if run not in found]
    branched = [run for run in runs if run.task is not None and run.parent is not None]
    controlled = [(run, _control(run, [*main, *(run for run, _ in controls), *branched], branched)) for run in branched]
    branches = [ComparedBranch(run, other, weight_distances(run, other) if other else {}) for run, other in controlled]
    others = [run for run in runs if run.task is None]
    names = told_apart({run.path.resolve(): last_folders(run.path) for run in others})
    return Study(main, controls, branches, [replace(run, series=names[run.path.resolve()]) for run in others])


def _without_series(run: Run) -> str:
    return replace(run, series="").name


def _by_series(runs: Sequence[Run]) -> list[Run]:
    """The same runs, each with the name of its series where its model has several.

    A series is the runs of one model in one folder (what a sweep adds to its name, from `+` on, does not count) that
    were asked for the same number of steps.
    """
    named = []
    for run in runs:
        model = [other for other in runs if other.p1 == run.p1]
        folders, name = {_folder(other) for other in model}, ""
        if len(folders) > 1:
            name = _folder_names(folders)[_folder(run)]
        if len({other.max_steps for other in model if _folder(other) == _folder(run)}) > 1:
            name = ", ".join(filter(None, [name, f"{run.max_steps:,} steps" if run.max_steps else "no limit"]))
        named.append(replace(run, series=name))
    return sorted(named, key=lambda run: (run.p1 or 0, run.series))


def _folder_names(folders: Set[Path]) -> dict[Path, str]:
    """What each folder is called from where they part; a part that repeats the one before it, as in `mod1/mod1`, is
    said once, if that leaves them apart."""
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    parts = {folder: folder.relative_to(common).parts for folder in folders}
    once = {folder: "/".join(part for part, _ in groupby(of_folder)) for folder, of_folder in parts.items()}
    return once if len({*once.values()}) == len(folders) else {folder: "/".join(parts[folder]) for folder in folders}


def _folder(run: Run) -> Path:
    folder = run.path.resolve().parent
    return folder.with_name(folder.name.partition("+")[0] or folder.name)


def branch_lines(branch: ComparedBranch) -> list[tuple[Run, str]]:
    """A branch and its control, each with what it is."""
    run, control, _ = branch
    assert run.parent is not None
    where = "its control is below" if control is not None else "its control is not among these runs"
    line = (run, f"{run.path.name}: a branch from {run.parent.stem}; {where}")
    return [line] if control is None else [line, (control, f"{control.path.name}: the control")]


def differing(run: Run, base: Mapping[str, Any]) -> list[str]:
    """The options in which a run is not like `base`, as `name: value`; one that is off or unknown counts as off."""
    assert run.task is not None
    own = {"P0": run.task.n_numbers, **run.options}
    return [f"{name}: {own.get(name)}" for name in base if (own.get(name) or None) != (base[name] or None)]


def _options(run: Run) -> dict[str, Any]:
    """What must be alike; an option that an older version did not have counts as off."""
    assert run.task is not None
    options = {name: run.options[name] for name in sorted(run.options) if name not in FREE_OPTIONS}
    return {"P0": run.task.n_numbers, **{name: value for name, value in options.items() if value}}


def _but_clamp(run: Run) -> tuple[Any, ...]:
    """What a branch and its control must share: model, seed, split, and all options but the clamp."""
    return _without_series(run), {name: value for name, value in _options(run).items() if name != "clamp"}


def _switches_nothing(run: Run) -> bool:
    inert = run.task is not None and run.p1 == run.task.n_numbers
    return run.step <= 1 or inert or bool(run.options.get("permute_trigger"))


def _difference(run: Run, main: Sequence[Run]) -> str:
    """What makes a run a control, by its options."""
    base = _options(main[0]) if main else paper_options()
    parts = differing(run, {**dict.fromkeys(_options(run)), **base})
    if run.task is not None and run.p1 == run.task.n_numbers:
        parts.append(f"moduli: {list(run.task.moduli)} (the trigger switches nothing)")
    if run.step <= 1:
        parts.append("untrained")
    return ", ".join(parts)


def _control(branch: Run, runs: Sequence[Run], branches: Sequence[Run]) -> Run | None:
    """What a branch is compared with: the branch from the same step of the same checkpoint that is like it but for the
    clamp, if there is one; else the run that it began from, by the place of the checkpoint, or if that has moved, the
    one run from step 0 that learns the same from the same seed."""
    assert branch.parent is not None
    for other in branches:
        at_one_place = other.parent is not None and other.parent.resolve() == branch.parent.resolve()
        at_one_place = at_one_place and other.branched_at == branch.branched_at
        alike = at_one_place and _but_clamp(other) == _but_clamp(branch)
        if alike and branch.config.get("clamp") and not other.config.get("clamp"):
            return other
    place = branch.parent.resolve().parent.parent
    by_place = [run for run in runs if run.path.resolve() == place]
    same = [run for run in runs if run.parent is None and _but_clamp(run) == _but_clamp(branch)]
    return next(iter(by_place or (same if len(same) == 1 else [])), None)
