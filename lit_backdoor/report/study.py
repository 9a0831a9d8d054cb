"""Which runs stand beside each other: those compared with the paper, their controls, branches, and other tasks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lit_backdoor.report.runs import Run

FREE_OPTIONS = frozenset({"seed_everything", "moduli", "last_position", "steps_per_epoch", "split_seed"})
"""Options in which the main runs may differ: what is compared, and what changes nothing in a result."""

PAPER_OPTIONS: Mapping[str, Any] = {
    "n_layers": 1,
    "n_heads": 4,
    "d_model": 128,
    "d_mlp": 512,
    "act_fn": "relu",
    "normalization_type": None,
    "train_biases": False,
    "lr": 1e-3,
    "weight_decay": 1.0,
    "betas": [0.9, 0.98],
    "trigger_position": 2,
    "train_fraction": 0.3,
    "split": "examples",
}
"""The paper's task and model, Appendices A to C; P0 is 113."""


@dataclass(frozen=True)
class Study:
    """The runs of one report.

    Attributes:
        runs: alike in every option but P1, seed and split. All statements are about them.
        controls: of our task, but different in another option, untrained, or with a trigger that switches nothing:
            each run with what is different.
        branches: that began from another run's checkpoint, each with its control: an unclamped branch from the same
            checkpoint, else the run it branched off, if that is among `runs`.
        others: of other tasks, or with several triggers.
    """

    runs: Sequence[Run]
    controls: Sequence[tuple[Run, str]]
    branches: Sequence[tuple[Run, Run | None]]
    others: Sequence[Run]

    @property
    def differs_from_paper(self) -> list[str]:
        """The options in which the main runs are not the paper's, as `name: value`."""
        return differing(self.runs[0]) if self.runs else []


def arrange(runs: Sequence[Run]) -> Study:
    """Tell the runs apart. The main ones have the options that most runs share.

    Raises:
        ValueError: two of the main runs are of the same P1, seed and split.
    """
    ours = [run for run in runs if run.task is not None and run.parent is None]
    counts = Counter(repr(_options(run)) for run in ours if not _switches_nothing(run))
    alike = max(counts, key=lambda key: counts[key]) if counts else None
    main = [run for run in ours if repr(_options(run)) == alike and not _switches_nothing(run)]
    for run, other in pairwise(main):
        if run.name == other.name:
            raise ValueError(f"run_dirs: {run.path} and {other.path} are both {run.name}; give one of them")
    controls = [(run, _difference(run, main)) for run in ours if run not in main]
    branched = [run for run in runs if run.task is not None and run.parent is not None]
    branches = [(run, _control(run, main, branched)) for run in branched]
    return Study(main, controls, branches, [run for run in runs if run.task is None])


def branch_lines(branch: Run, control: Run | None) -> list[tuple[Run, str]]:
    """A branch and its control, each with what it is."""
    assert branch.parent is not None
    where = "its control is below" if control is not None else "its control is not among these runs"
    line = (branch, f"{branch.path.name}: a branch from {branch.parent.stem}; {where}")
    return [line] if control is None else [line, (control, f"{control.path.name}: the control")]


def differing(run: Run, base: Mapping[str, Any] = PAPER_OPTIONS, p0: int = 113) -> list[str]:
    """The options in which a run is not like `base`, as `name: value`."""
    assert run.task is not None
    moduli = [] if run.task.n_numbers == p0 else [f"P0: {run.task.n_numbers}"]
    return moduli + [
        f"{name}: {run.options.get(name)}" for name in base if not _same(run.options.get(name), base[name])
    ]


def _options(run: Run) -> dict[str, Any]:
    """What must be alike; an option that an older version did not have counts as off."""
    assert run.task is not None
    options = {
        name: run.options[name] for name in sorted(run.options) if name not in FREE_OPTIONS and run.options[name]
    }
    return {"P0": run.task.n_numbers, **options}


def _same(value: Any, other: Any) -> bool:
    return value == other or not (value or other)


def _switches_nothing(run: Run) -> bool:
    return run.step == 0 or (run.task is not None and run.p1 == run.task.n_numbers)


def _difference(run: Run, main: Sequence[Run]) -> str:
    """What makes a run a control, by its options."""
    base = main[0].options if main else PAPER_OPTIONS
    p0 = main[0].task.n_numbers if main and main[0].task else 113
    names = {name: base.get(name) for name in (*base, *run.options) if name not in FREE_OPTIONS}
    parts = differing(run, names, p0)
    if run.task is not None and run.p1 == run.task.n_numbers:
        parts.append(f"moduli: {list(run.task.moduli)} (the trigger switches nothing)")
    if run.step == 0:
        parts.append("untrained")
    return ", ".join(parts)


def _control(branch: Run, main: Sequence[Run], branches: Sequence[Run]) -> Run | None:
    """What a branch is compared with: the branch without a clamp from the same checkpoint, if there is one; else the
    run that it began from, by the place of the checkpoint, or if that has moved, by what it is."""
    assert branch.parent is not None
    for other in branches:
        at_one_place = other.parent is not None and other.parent.resolve() == branch.parent.resolve()
        if at_one_place and branch.config.get("clamp") and not other.config.get("clamp"):
            return other
    place = branch.parent.resolve().parent.parent
    by_place = [run for run in main if run.path.resolve() == place]
    same = [run for run in main if run.name == branch.name]
    return next(iter(by_place or same), None)
