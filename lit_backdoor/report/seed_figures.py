"""What the paper lacks: figures over seeds, with the heads ordered by rank."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lit_backdoor.functional import parse_head_set
from lit_backdoor.report.declared import declared
from lit_backdoor.report.measures import ALL, by_state
from lit_backdoor.report.published import paper_table, single_costs
from lit_backdoor.report.ranks import NONE, n_heads_of, rank_key, rank_set_name, table_1_sets
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_statistics import exactly_one_curve
from lit_backdoor.report.wording import percent, plural
from lit_backdoor.show.style import new_figure
from lit_backdoor.show.training import emergence_figure

RANK_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c564b", "#7f7f7f")
OURS, PAPER, FOREIGN = "#0072b2", "#d55e00", "#cc79a7"
STATE_STYLES = {ALL: "-", "generalised": "--", "fitted": "-.", "not fitted": ":"}

Points = Mapping[str, Sequence[float]]
"""Of each place on an axis, the numbers of all runs."""


def colour_of(rank: int) -> str:
    """The colour of a rank, counted from 1."""
    return RANK_COLOURS[(rank - 1) % len(RANK_COLOURS)]


def emergence_of(run: Run, probe: str = "backdoor") -> Figure:
    """One run: its accuracy against the step with each head patched alone."""
    marks = {}
    if probe == run.emergence.get("probe"):
        marks = {"generalised": run.emergence["generalised_step"]}
        if (head := run.emergence["head"]) is not None:
            marks[f"{head} alone"] = run.emergence["stable_exclusive_step"]
    figure = emergence_figure(run.history[probe], f"{run.patching[probe][0].recipient} accuracy", marks)
    figure.suptitle(run.name if probe == "backdoor" else f"{run.name}: {probe}", x=0.01, ha="left", fontsize=11)
    return figure


def strips_figure(runs: Sequence[Run]) -> Figure:
    """Every run as a strip of time: which head costs most, when one was alone, when the run generalised.

    Beside it stands the largest Shapley share.
    """
    n_ranks = max(len(run.order) for run in runs)
    figure = new_figure(10, 1.5 + 0.36 * len(runs))
    time, share = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    for y, run in enumerate(runs):
        order = run.order
        changes = [(change["step"], parse_head_set(change["head"])[0]) for change in run.emergence["leader_changes"]]
        ends = [*(step for step, _ in changes), run.history["backdoor"][-1].step][1:]
        for (step, head), end in zip(changes, ends, strict=True):
            time.barh(y, end - step, left=step, height=0.62, color=colour_of(order.index(head) + 1))
        for key, marker, size in (("generalised_step", "v", 8), ("stable_exclusive_step", "*", 13)):
            if (step := run.emergence[key]) is not None:
                time.plot(step, y, marker, color="black", markersize=size, markeredgecolor="white", markeredgewidth=0.9)
        if (result := run.shapley()) is not None and result.total:
            value = max(result.values.values(), key=lambda value: value / result.total) / result.total
            share.bar_label(
                share.barh(y, value, height=0.62, color="#7f7f7f"), [percent(value, 0)], padding=3, fontsize=8
            )
    handles: list[Artist] = [
        Patch(color=colour_of(rank), label=f"rank {rank} costs most") for rank in range(1, n_ranks + 1)
    ]
    handles += time.plot([], [], "kv", linestyle="none", label="generalised")
    handles += time.plot([], [], "k*", linestyle="none", markersize=11, label="one head alone for good")
    names = [f"{run.name}{f' ({run.state})' if run.state else ''}" for run in runs]
    time.set(xlabel="optimizer step", xlim=(0, None), yticks=range(len(runs)), yticklabels=names)
    time.invert_yaxis()
    share.axvline(1 / n_ranks, color="black", linewidth=0.8, linestyle=":")
    share.set(xlabel="largest Shapley share", xlim=(0, 1.18), xticks=[0, 0.5, 1])
    for axis in (time, share):
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def curve_rows(ours: pd.DataFrame) -> pd.DataFrame:
    """exactly_one.csv: in which share of the runs exactly one head is costly, by threshold, ours by state, the paper's.

    Args:
        ours: what patching leaves in the runs of mod 1; see `by_ranks`.
    """
    series = [(f"ours, {state}", single_costs(some)) for state, some in by_state(ours)]
    series.append(("the paper", single_costs(paper_table("Table 2"))))
    return pd.DataFrame(
        {"whose": name, "threshold": threshold, "n_runs": len(values), "rate": rate.value,
         "wilson95_low": rate.low, "wilson95_high": rate.high}
        for name, values in series
        for threshold, rate in exactly_one_curve(values, declared().thresholds).items()
    )  # fmt: skip


def curve_figure(curve: pd.DataFrame) -> Figure:
    """`curve_rows` as lines, with Wilson's bands for all of ours and for the paper's."""
    figure = new_figure(6.4, 4)
    axis = figure.subplots()
    for name, rows in curve.groupby("whose", sort=False):
        state = str(name).removeprefix("ours, ")
        colour = PAPER if name == "the paper" else OURS
        label = f"{name} ({rows['n_runs'].iloc[0]})"
        axis.plot(
            rows["threshold"], rows["rate"], STATE_STYLES.get(state, "-"), color=colour, label=label, linewidth=1.6
        )
        if state in (ALL, "the paper"):
            axis.fill_between(rows["threshold"], rows["wilson95_low"], rows["wilson95_high"], color=colour, alpha=0.15)
    axis.axvline(declared().threshold, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel="cost from which a head counts as costly", ylabel="share of runs with exactly one", ylim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def ranks_figure(name: str, sets: pd.DataFrame) -> Figure:
    """The runs of one model: what is left after patching, by rank.

    Args:
        name: of the model; with mod 1 stand the paper's experiments.
        sets: of `head_sets`, or of `foreign_rows`, then with the notebook's bug beside.
    """
    n_heads, n_runs = n_heads_of(sets["ranks"]), int((sets["ranks"] == NONE).sum())
    foreign = "foreign_backdoor_accuracy" in sets
    ours = _by_rank(sets, "backdoor_accuracy", n_heads)
    series: dict[str, tuple[Points, str]] = {"patched properly" if foreign else f"ours, {plural(n_runs)}": (ours, OURS)}
    if foreign:
        series["with the notebook's bug"] = (_by_rank(sets, "foreign_backdoor_accuracy", n_heads), FOREIGN)
    elif name == "mod 1" and n_heads == 4:
        table = paper_table("Table 2")
        theirs = {rank_set_name(ranks, 4): table[ranks].tolist() for ranks in table}
        series[f"the paper, {len(table)} experiments"] = (theirs, PAPER)
    return _dots_figure(f"{name}, {plural(n_runs)}", "backdoor accuracy left", series, (-0.04, 1.06))


def shapley_figure(name: str, rows: pd.DataFrame) -> Figure:
    """The runs of one model: Shapley values of the backdoor accuracy, by rank, both directions."""
    values = rows[rows["kind"] == "value"]
    names = {"needed": ("benign heads into the triggered run", OURS), "sufficient": ("the other way round", PAPER)}
    series: dict[str, tuple[Points, str]] = {}
    for direction, (label, colour) in names.items():
        some = values[values["direction"] == direction].sort_values("ranks")
        series[label] = ({f"Rank {ranks}": column.tolist() for ranks, column in some.groupby("ranks")["value"]}, colour)
    return _dots_figure(f"{name}: Shapley values", "change of the backdoor accuracy", series, None)


def all_sets_figure(name: str, sets: pd.DataFrame) -> Figure:
    """The runs of one model: all sets of heads by rank, in both directions; bars are medians, dots runs."""
    places = sorted(sets["ranks"].unique(), key=rank_key)
    n_heads = rank_key(places[-1])[0]
    figure = new_figure(9, 1.3 + 0.3 * len(places))
    axes = figure.subplots(1, 2, sharey=True)
    panels = (
        ("benign heads into the triggered run:\nwhat is left", "backdoor_accuracy", OURS),
        ("triggered heads into the benign run:\nwhat they bring", "backdoor_accuracy_of_benign_run", PAPER),
    )
    for axis, (title, column, colour) in zip(axes, panels, strict=True):
        for y, ranks in enumerate(places):
            values = sets.loc[sets["ranks"] == ranks, column]
            axis.barh(y, values.median(), height=0.7, color=colour, alpha=0.35)
            axis.plot(values, [y] * len(values), "o", color="black", markersize=2.5, alpha=0.6)
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="backdoor accuracy", xlim=(0, 1.02), yticks=range(len(places)))
        axis.set_yticklabels([rank_set_name(ranks, n_heads) for ranks in places])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    axes[0].set_ylabel(f"{name}: patched heads, by rank")
    return figure


def specificity_by_run(name: str, group: Sequence[Run]) -> Figure:
    """The runs of one model: what each head costs the backdoor against what it costs the benign rule.

    One dot per head at the end, the costliest of its run ringed; a trail over training where the run has a table.
    """
    limits = declared()
    figure = new_figure(5.2, 4.6)
    axis = figure.subplots()
    axis.axvspan(limits.necessary, 1.05, ymax=(limits.specific + 0.05) / 1.1, color="#009e73", alpha=0.15, linewidth=0)
    axis.annotate("necessary and specific", (1.03, 0.0), ha="right", va="center", fontsize=8, color="#00664b")
    for run in group:
        for rank, head in enumerate(run.order, start=1):
            both = run.specificity.get(head)
            if both is None:
                continue
            if "head_specificity" in run.tables:
                table = run.tables["head_specificity"].query("probe == 'backdoor'")
                trail = table.query(f"layer == {head.layer} and head == {head.head}")
                axis.plot(
                    trail["cost"], trail["donor_cost"], color=colour_of(rank), linewidth=0.7, alpha=0.4, marker="."
                )
            edge = {"markeredgecolor": "black", "markersize": 8} if rank == 1 else {"markersize": 6}
            axis.plot(both.cost, both.donor_cost, "o", color=colour_of(rank), alpha=0.8, **edge)
    for rank in range(1, len(group[0].order) + 1):
        axis.plot([], [], "o", color=colour_of(rank), label=f"rank {rank}")
    axis.set(xlabel="cost to the backdoor", ylabel="cost to the benign rule", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axis.set_title(f"{name}, {plural(len(group))}", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _by_rank(frame: pd.DataFrame, column: str, n_heads: int) -> Points:
    return {
        rank_set_name(ranks, n_heads): frame.loc[frame["ranks"] == ranks, column].tolist()
        for ranks in table_1_sets(n_heads)
    }


def _dots_figure(
    title: str, ylabel: str, series: Mapping[str, tuple[Points, str]], limits: tuple[float, float] | None
) -> Figure:
    """Every run's number as a dot, a bar at the median; series side by side."""
    figure = new_figure(6, 3.8)
    axis = figure.subplots()
    draw_dots(axis, series, limits)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=11)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def draw_dots(axis: Axes, series: Mapping[str, tuple[Points, str]], limits: tuple[float, float] | None) -> None:
    """Series of numbers side by side, each with a colour: a dot per run, a bar at the median."""
    places = list(next(iter(series.values()))[0])
    width = 0.7 / len(series)
    for index, (label, (points, colour)) in enumerate(series.items()):
        for x, place in enumerate(places):
            values = sorted(points.get(place, ()))
            if not values:
                continue
            centre = x + (index - (len(series) - 1) / 2) * width
            spread = np.linspace(-0.3, 0.3, len(values)) * width if len(values) > 1 else [0.0]
            axis.plot(centre + np.asarray(spread), values, "o", color=colour, markersize=3.5, alpha=0.6)
            axis.hlines(np.median(values), centre - 0.42 * width, centre + 0.42 * width, color=colour, linewidth=2)
        axis.plot([], [], "o-", color=colour, markersize=4, label=label)
    axis.set(xticks=range(len(places)), xticklabels=[place.replace(" ", "\n", 1) for place in places])
    if limits is None:
        axis.axhline(0, color="black", linewidth=0.8)
    else:
        axis.set_ylim(*limits)
    axis.tick_params("x", labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)
