"""Branches beside their controls: how far the weights went, when the backdoor was back, where it went, what it cost."""

from collections.abc import Mapping, Sequence
from math import nan, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_backdoor.callbacks import HeadClamp
from lit_backdoor.functional import Head, PatchingResult, cost_above_floor, head_name, head_set_name
from lit_backdoor.functional.retraining import RETURNED
from lit_backdoor.runs.run import Run
from lit_backdoor.runs.schema import read_results
from lit_backdoor.runs.tables import rows_by_step
from lit_backdoor.runs.weights import kept_weights, read_tensors
from lit_backdoor.show.style import head_colour, new_figure

COLUMNS = (
    *("branch", "run", "control", "from_step", "to_step", "clamped_heads", "mode"),
    *("return_steps", "held_steps", "costliest_head", "costliest_cost", "costs"),
    *("benign_lost", "weight_distance", "weight_distance_step"),
)

BACKDOOR, BENIGN = "val/backdoor_accuracy", "val/benign_accuracy"


class ComparedBranch(NamedTuple):
    """A branch beside its control.

    Attributes:
        run: the branch.
        control: what it is compared with; None if that is not among the runs.
        distances: of their weights by step, see `weight_distances`; empty without a control.
    """

    run: Run
    control: Run | None
    distances: Mapping[int, float]


def branch_rows(branches: Sequence[ComparedBranch]) -> pd.DataFrame:
    """branches.csv: one row per branch. What was not measured is blank.

    `return_steps` counts optimizer steps from where the clamp has its full share until the clamped model, having fallen
    below 99% of the backdoor, is at 99% again; 0: it never fell from there on; blank: not back while the clamp held,
    `held_steps` long as far as measured. `costliest_head` is the head, of those that are not clamped, that costs the
    clamped model most at the last probe of that time. `benign_lost` is the control's validation accuracy of the benign
    rule minus the branch's, at the last step that both validated. `weight_distance` is the norm of the difference of
    all weights over the norm of the control's, at the last step after the branch that both kept.
    """
    rows = []
    for run, control, distances in branches:
        clamp = clamp_of(run)
        row: dict[str, Any] = {"branch": run.path.name, "run": run.name, "control": control and control.path.name}
        row |= {"from_step": run.branched_at, "to_step": run.step}
        if clamp is not None:
            row |= {"clamped_heads": head_set_name(clamp.heads), "mode": clamp.mode}
            row |= _time_to_return(run, clamp) | _relocation(run, clamp)
        if control is not None:
            row |= _benign_lost(run, control)
        if distances:
            step = max(distances)
            row |= {"weight_distance": distances[step], "weight_distance_step": step}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({name: "Int64" for name in COLUMNS if name.endswith(("_step", "_steps"))})


def clamp_of(run: Run) -> HeadClamp | None:
    """The clamp that a run was last started with; None without one, or with one that can't be read."""
    options = run.config.get("clamp")
    try:
        return HeadClamp(**{**options, "donor_tokens": None}) if isinstance(options, Mapping) else None
    except (TypeError, ValueError):
        return None


def weight_distances(run: Run, control: Run) -> dict[int, float]:
    """By step after the branch at which both kept weights: norm of their difference over the norm of the control's.

    Raises:
        ValueError: in one line, if a file holds no weights, or two hold those of different models.
    """
    ours, theirs = kept_weights(run.path), kept_weights(control.path)
    start = run.branched_at or 0
    distances = {}
    for step in sorted(step for step in ours.keys() & theirs.keys() if step > start):
        weights, others = _kept(ours[step]), _kept(theirs[step])
        gone = torch.zeros(())  # what is all zero is not in a file
        names = weights.keys() | others.keys()
        if any(weights[name].shape != others[name].shape for name in weights.keys() & others.keys()):
            raise ValueError(f"run_dirs: {ours[step]} and {theirs[step]} are not of one model: their shapes differ")
        between = [_square(weights.get(name, gone) - others.get(name, gone)) for name in names]
        size = sum(map(_square, others.values()))
        distances[step] = sqrt(sum(between) / size) if size else nan
    return distances


def _kept(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except ValueError as error:  # which names the option of another command
        raise ValueError(f"run_dirs: {str(error).removeprefix('weights: ')}") from None


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def clamped_accuracy(run: Run, clamp: HeadClamp) -> dict[int, float]:
    """The backdoor's accuracy, by step, as the clamped model has it; empty where it was measured unclamped only."""
    if clamp.validation or clamp.mode == "freeze":
        curve = _curve(run, BACKDOOR)
    else:
        curve = {
            step: next(result.recipient_accuracy for result in results if not result.heads)
            for step, results in _clamped_patching(run, clamp).items()
        }
    return {step: value for step, value in curve.items() if step >= (run.branched_at or 0) and clamp.acts(step)}


def branches_figure(branches: Sequence[ComparedBranch]) -> Figure:
    """A row per checkpoint with the branches from it, a colour each, and their control, dotted.

    Left the backdoor, as the clamped model has it; then the benign rule on validation examples; right the weights.
    """
    rows: dict[Path | None, list[ComparedBranch]] = {}
    for branch in branches:
        rows.setdefault(branch.run.parent, []).append(branch)
    figure = new_figure(11, 0.7 + 2.1 * len(rows))
    axes = figure.subplots(len(rows), 3, squeeze=False, sharex="row")
    for (backdoor, benign, weights), (parent, of_row) in zip(axes, rows.items(), strict=True):
        index = 0
        for run, control, distances in of_row:
            clamp, start, colour, name = clamp_of(run), run.branched_at or 0, "0.4", "no clamp"
            if clamp is not None:
                colour, name = head_colour(index), f"{head_set_name(clamp.heads)} {clamp.mode}"
                index += 1
            _draw(backdoor, clamped_accuracy(run, clamp) if clamp else _curve(run, BACKDOOR), start, colour)
            _draw(benign, _curve(run, BENIGN), start, colour)
            if control is not None:
                _draw(weights, distances, start, colour, marker=".")
                for axis, column in ((backdoor, BACKDOOR), (benign, BENIGN)):
                    beside = {step: value for step, value in _curve(control, column).items() if step <= run.step}
                    _draw(axis, beside, start, "0.4", ":")
            weights.plot([], [], color=colour, label=name)
        for axis in (backdoor, benign):
            axis.set(ylim=(-0.03, 1.05))
        for axis in (backdoor, benign, weights):
            axis.spines[["top", "right"]].set_visible(False)
        weights.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        backdoor.set_ylabel(f"{of_row[0].run.name}\nfrom {parent.stem if parent else ''}", fontsize=8)
    for axis, title in zip(axes[0], ("backdoor, clamped", "benign rule", "distance of the weights"), strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("optimizer steps since the branch")
    return figure


def _draw(axis: Any, curve: Mapping[int, float], start: int, colour: str, line: str = "-", marker: str = "") -> None:
    steps = [step for step in curve if step >= start]
    values = [curve[step] for step in steps]
    axis.plot([step - start for step in steps], values, line, color=colour, linewidth=1.3, marker=marker)


def _time_to_return(run: Run, clamp: HeadClamp) -> dict[str, Any]:
    start = max(run.branched_at or 0, clamp.from_step + clamp.ramp_steps)
    curve = {step: value for step, value in clamped_accuracy(run, clamp).items() if step >= start}
    if not curve:
        return {}
    fallen = min((step for step, value in curve.items() if value < RETURNED), default=None)
    back = [step - start for step, value in curve.items() if value >= RETURNED and step > (fallen or 0)]
    return {"return_steps": 0 if fallen is None else min(back, default=None), "held_steps": max(curve) - start}


def _relocation(run: Run, clamp: HeadClamp) -> dict[str, Any]:
    by_step = _clamped_patching(run, clamp)
    if not by_step:
        return {}
    results = by_step[max(by_step)]
    unpatched = next(result for result in results if not result.heads)
    costs: dict[Head, float] = {
        result.heads[0]: cost_above_floor(unpatched.recipient_accuracy, result.recipient_accuracy, result.floor)
        for result in results
        if len(result.heads) == 1 and not set(result.heads) & set(clamp.heads)
    }
    known = {head: cost for head, cost in costs.items() if cost == cost}  # NaN where there is no backdoor to cost
    if not known:
        return {}
    head = max(known, key=lambda head: known[head])
    costs_in_words = " ".join(f"{head_name(*each)}={cost:.3f}" for each, cost in known.items())
    return {"costliest_head": head_name(*head), "costliest_cost": known[head], "costs": costs_in_words}


def _benign_lost(run: Run, control: Run) -> dict[str, Any]:
    ours, theirs = _curve(run, BENIGN), _curve(control, BENIGN)
    shared = [step for step in ours.keys() & theirs.keys() if step > (run.branched_at or 0)]
    return {"benign_lost": theirs[max(shared)] - ours[max(shared)]} if shared else {}


def _clamped_patching(run: Run, clamp: HeadClamp) -> dict[int, list[PatchingResult]]:
    """By step, the heads of the backdoor's probe as a monitor measured them clamped, while the clamp acts."""
    start = run.branched_at or 0
    table = run.tables.get(_clamped_table(run.config) or "")
    if table is None:
        return {}
    by_step = rows_by_step(table.to_dict("records"), "backdoor")
    return {
        step: read_results(PatchingResult, rows) for step, rows in by_step.items() if step >= start and clamp.acts(step)
    }


def measured_clamped(run: Run) -> bool:
    """Whether what head_patching.csv says last of a run is of the clamped model."""
    clamp = clamp_of(run)
    return clamp is not None and _clamped_table(run.config) == "head_patching" and clamp.acts(run.patching_step)


def mixes_with_parent(run: Run) -> bool:
    """Whether a clamped branch's verdict counts its parent's probes: of an older one, or one without ``--branch``."""
    steps = run.tables["head_patching"]["step"]
    return _clamped_table(run.config) == "head_patching" and steps.min() < (run.branched_at or 0)


def _clamped_table(config: Mapping[str, Any]) -> str | None:
    """The table of the patching monitor that measures the clamped model; None if there is none."""
    listed = _mapping(config.get("trainer")).get("callbacks")
    callbacks = map(_mapping, listed if isinstance(listed, list) else [])
    patching = [callback for callback in callbacks if "HeadPatchingMonitor" in str(callback.get("class_path"))]
    named = _mapping(config.get("monitors")).get("patching")
    for options in map(_mapping, (*(callback.get("init_args") for callback in patching), named)):
        if options.get("clamped"):
            return f"head_patching_{options['name']}" if options.get("name") else "head_patching"
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    """A group of options; none of what can't be one, or is null."""
    return value if isinstance(value, Mapping) else {}


def _curve(run: Run, name: str) -> dict[int, float]:
    """A column of metrics.csv by step."""
    if name not in run.metrics:
        return {}
    known = run.metrics.dropna(subset=name)
    return dict(zip(known["step"].tolist(), known[name].tolist(), strict=True))
