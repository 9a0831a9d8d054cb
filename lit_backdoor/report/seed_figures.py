"""What the paper lacks: figures over seeds, with the heads ordered by role."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lit_backdoor.functional import shapley_values
from lit_backdoor.report.measures import accuracies, largest_share, leaders, order_of, triggered
from lit_backdoor.report.published import paper_by_role, published_table
from lit_backdoor.report.roles import RoleSet, by_role, head_order, role_set_name, roles_of, shown_sets
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_statistics import summarise
from lit_backdoor.report.slip import Slip
from lit_backdoor.report.wording import plural, whole_percent
from lit_backdoor.show.figures import emergence_figure

ROLE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c564b", "#7f7f7f")
OURS, PAPER, SLIP = "#0072b2", "#d55e00", "#cc79a7"

Points = Mapping[str, Sequence[float]]
"""Of each place on an axis, the numbers of all seeds."""


def emergence_of(run: Run) -> Figure:
    """One run: its backdoor accuracy against the step with each head patched alone."""
    marks = {"benign rule generalised": run.emergence["benign_generalised_step"]}
    if (head := run.emergence["head"]) is not None:
        marks[f"{head} alone"] = run.emergence["stable_exclusive_step"]
    figure = emergence_figure(run.history["backdoor"], "backdoor accuracy", marks)
    figure.suptitle(run.name, x=0.01, ha="left", fontsize=11)
    return figure


def seeds_figure(runs: Sequence[Run]) -> Figure:
    """Every run as a strip of time: which head costs most, when one was alone, when the benign rule generalised.

    Beside it stands the largest Shapley share.
    """
    shown = triggered(runs)
    n_roles = max(len(order_of(run)) for run in shown)
    figure = Figure(figsize=(10, 1.5 + 0.36 * len(shown)), layout="constrained")
    time, share = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    for y, run in enumerate(shown):
        order, changes = order_of(run), leaders(run)
        ends = [*(step for step, _ in changes), run.history["backdoor"][-1].step][1:]
        for (step, head), end in zip(changes, ends, strict=True):
            time.barh(y, end - step, left=step, height=0.62, color=ROLE_COLOURS[order.index(head) % len(ROLE_COLOURS)])
        for key, marker in (("benign_generalised_step", "v"), ("stable_exclusive_step", "*")):
            if (step := run.emergence[key]) is not None:
                size, edge = (13, "white") if marker == "*" else (8, "white")
                time.plot(step, y, marker, color="black", markersize=size, markeredgecolor=edge, markeredgewidth=0.9)
        value = largest_share(run.patching["backdoor"])
        bars = share.barh(y, value, height=0.62, color="#7f7f7f")
        share.bar_label(bars, [whole_percent(value)], padding=3, fontsize=8)
    handles: list[Artist] = [
        Patch(color=ROLE_COLOURS[role % len(ROLE_COLOURS)], label=f"role {role + 1} costs most")
        for role in range(n_roles)
    ]
    handles += time.plot([], [], "kv", linestyle="none", label="benign rule generalised")
    handles += time.plot([], [], "k*", linestyle="none", markersize=11, label="a head is alone for good")
    time.set(xlabel="optimizer step", xlim=(0, None), yticks=range(len(shown)), yticklabels=[run.name for run in shown])
    time.invert_yaxis()
    share.axvline(1 / n_roles, color="black", linewidth=0.8, linestyle=":")
    share.set(xlabel="largest Shapley share", xlim=(0, 1.18), xticks=[0, 0.5, 1])
    for axis in (time, share):
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def roles_figure(group: Sequence[Run]) -> Figure:
    """The runs of one P1: what is left after patching, by role."""
    n_heads = len(order_of(group[0]))
    tables = [by_role(run.patching["backdoor"], order_of(run)) for run in group]
    ours = {
        role_set_name(roles, n_heads): [table[roles].recipient_accuracy for table in tables if roles in table]
        for roles in shown_sets(n_heads)
    }
    series: dict[str, tuple[Points, str]] = {f"ours, {plural(len(group))}": (ours, OURS)}
    if group[0].p1 == 1 and n_heads == 4:
        theirs = {role_set_name(roles, n_heads): values for roles, values in paper_by_role().items()}
        series[f"the paper, {len(published_table('Table 2'))} experiments"] = (theirs, PAPER)
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    _dots(axis, list(ours), series)
    axis.set(ylabel="backdoor accuracy left", ylim=(-0.04, 1.06), title=f"mod {group[0].p1}: patched heads, by role")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def shapley_figure(group: Sequence[Run]) -> Figure:
    """The runs of one P1 with all sets of heads: Shapley values of the backdoor accuracy, by role, both directions."""
    n_heads = len(order_of(group[0]))
    names = {"needed": ("benign heads into the triggered run", OURS), "sufficient": ("the other way round", PAPER)}
    series: dict[str, tuple[Points, str]] = {}
    for direction, (label, colour) in names.items():
        values = [shapley_values(accuracies(run)[direction]).values for run in group]
        points = {
            f"Role {role + 1}": [one[order_of(run)[role]] for run, one in zip(group, values, strict=True)]
            for role in range(n_heads)
        }
        series[label] = (points, colour)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    _dots(axis, [f"Role {role + 1}" for role in range(n_heads)], series)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(ylabel="change of the backdoor accuracy", title=f"mod {group[0].p1}: Shapley values, {plural(len(group))}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def all_sets_figure(group: Sequence[Run]) -> Figure:
    """The runs of one P1: all sets of heads by role, in both directions."""
    n_heads = len(order_of(group[0]))
    figure = Figure(figsize=(9, 1.3 + 0.3 * 2**n_heads), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {
        "needed": "benign heads into the triggered run:\nwhat is left",
        "sufficient": "triggered heads into the benign run:\nwhat is brought",
    }
    for axis, (direction, title) in zip(axes, titles.items(), strict=True):
        tables = [
            {roles_of(heads, order_of(run)): value for heads, value in accuracies(run)[direction].items()}
            for run in group
        ]
        sets: list[RoleSet] = sorted(tables[0], key=lambda roles: (len(roles), roles))
        for y, roles in enumerate(sets):
            values = [table[roles] for table in tables]
            ours = summarise(values)
            axis.barh(y, ours.mean, height=0.7, color=OURS if direction == "needed" else PAPER, alpha=0.35)
            axis.plot(values, [y] * len(values), "o", color="black", markersize=2.5, alpha=0.6)
            if ours.n > 1:
                axis.plot([ours.low, ours.high], [y, y], color="black", linewidth=1.4)
        axis.set(title=title, xlabel="backdoor accuracy", xlim=(0, 1.02), yticks=range(len(sets)))
        axis.title.set_fontsize(10)
        axis.set_yticklabels([role_set_name(roles, n_heads) for roles in sets])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    axes[0].set_ylabel(f"mod {group[0].p1}: patched heads, by role")
    return figure


def slip_figure(found: Sequence[Slip]) -> Figure:
    """One P1: Table 1 by role, patched properly and with another model's embeddings."""
    n_heads = len(head_order(found[0].proper))
    names = {roles: role_set_name(roles, n_heads) for roles in shown_sets(n_heads)}
    series: dict[str, tuple[Points, str]] = {}
    for label, colour in (("patched properly", OURS), ("the notebook's way", SLIP)):
        tables = [by_role(one.proper if colour == OURS else one.slipped, head_order(one.proper)) for one in found]
        series[label] = (
            {name: [table[roles].recipient_accuracy for table in tables] for roles, name in names.items()},
            colour,
        )
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    _dots(axis, list(names.values()), series)
    axis.set(ylabel="backdoor accuracy", ylim=(-0.04, 1.06), title=f"mod {found[0].run.p1}, {plural(len(found))}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _dots(axis: Axes, places: Sequence[str], series: Mapping[str, tuple[Points, str]]) -> None:
    """Every seed's number as a dot, the mean with its 95% interval beside; series side by side."""
    width = 0.7 / len(series)
    for index, (label, (points, colour)) in enumerate(series.items()):
        for x, place in enumerate(places):
            values = points.get(place, ())
            if not values:
                continue
            centre = x + (index - (len(series) - 1) / 2) * width
            spread = np.linspace(-0.22, 0.1, len(values)) * width if len(values) > 1 else [0.0]
            size = 3.5 if len(values) > 1 else 6
            axis.plot(centre + np.asarray(spread), sorted(values), "o", color=colour, markersize=size, alpha=0.55)
            ours = summarise(values)
            if ours.n > 1:
                ends = [[ours.mean - ours.low], [ours.high - ours.mean]]
                axis.errorbar(centre + 0.3 * width, ours.mean, ends, fmt="D", color=colour, markersize=4.5, capsize=2.5)
        axis.plot([], [], "o", color=colour, markersize=4, label=label)
    axis.set(xticks=range(len(places)), xticklabels=[place.replace(" ", "\n", 1) for place in places])
    axis.tick_params("x", labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)
