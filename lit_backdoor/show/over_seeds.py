"""Figures over seeds, from data frames: a dot for each run, heads by rank."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_backdoor.functional.ranks import rank_key, rank_set_name
from lit_backdoor.show.style import new_figure
from lit_backdoor.show.wording import plural

RANK_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c564b", "#7f7f7f")
OURS, PAPER, FOREIGN = "#0072b2", "#d55e00", "#cc79a7"
STATE_LINES = {"generalised": "--", "fitted": "-.", "not fitted": ":"}

EDGE_WORDS = {"Q": "query", "K": "key", "V": "value", "QK": "query and key", "D": "past the heads",
              "A_mlp": "heads to MLP", "A_logits": "heads to logits"}  # fmt: skip
"""The groups of edges over runs, in words."""

ALL_HEADS = "all"
"""The rank under which every head at once stands."""

Points = Mapping[str, Sequence[float]]
"""Of each place on an axis, the numbers of all runs."""

Series = Mapping[str, tuple[Points, str]]
"""Points and their colour, by label."""


def colour_of(rank: int) -> str:
    """The colour of a rank, counted from 1."""
    return RANK_COLOURS[(rank - 1) % len(RANK_COLOURS)]


def points(frame: pd.DataFrame, place: str, column: str) -> Points:
    """The numbers in `column` by what stands in the column `place`."""
    return frame.groupby(place)[column].agg(list).to_dict()


def draw_dots(axis: Axes, places: Mapping[str, str], series: Series, shares: bool = True) -> None:
    """Series of numbers side by side: a dot per run, a bar at the median.

    Args:
        axis: where.
        places: what each place on the axis is called.
        series: the numbers.
        shares: whether they lie in 0..1; else there is a line at 0.
    """
    width = 0.7 / len(series)
    for index, (label, (of_place, colour)) in enumerate(series.items()):
        for x, place in enumerate(places):
            values = sorted(of_place.get(place, ()))
            if not values:
                continue
            centre = x + (index - (len(series) - 1) / 2) * width
            spread = np.linspace(-0.3, 0.3, len(values)) * width if len(values) > 1 else [0.0]
            axis.plot(centre + np.asarray(spread), values, "o", color=colour, markersize=3.5, alpha=0.6)
            axis.hlines(np.median(values), centre - 0.42 * width, centre + 0.42 * width, color=colour, linewidth=2)
        axis.plot([], [], "o-", color=colour, markersize=4, label=label)
    axis.set(xticks=range(len(places)), xticklabels=[name.replace(" ", "\n", 1) for name in places.values()])
    if shares:
        axis.set_ylim(-0.04, 1.06)
    else:
        axis.axhline(0, color="black", linewidth=0.8)
    axis.tick_params("x", labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)


def dots_figure(title: str, ylabel: str, places: Mapping[str, str], series: Series, shares: bool = True) -> Figure:
    """One axis of `draw_dots`, with its legend."""
    figure = new_figure(6, 3.8)
    axis = figure.subplots()
    draw_dots(axis, places, series, shares)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=11)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def shapley_figure(name: str, rows: pd.DataFrame) -> Figure:
    """The runs of one model: Shapley values of the backdoor accuracy, by rank, both directions."""
    values = rows[rows["kind"] == "value"]
    names = {"needed": ("benign heads into the triggered run", OURS), "sufficient": ("the other way round", PAPER)}
    series = {
        label: (points(values[values["direction"] == direction], "ranks", "value"), colour)
        for direction, (label, colour) in names.items()
    }
    places = {ranks: f"Rank {ranks}" for ranks in sorted(values["ranks"].unique())}
    return dots_figure(f"{name}: Shapley values", "change of the backdoor accuracy", places, series, shares=False)


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


def paths_figure(name: str, paths: pd.DataFrame) -> Figure:
    """The runs of one group: what is left and what is brought by each kind of edges, of all heads and by rank."""
    figure = new_figure(9, 6.4)
    axes = figure.subplots(2, 1, sharex=True)
    ranks = sorted(rank for rank in paths["rank"].unique() if rank != ALL_HEADS)
    colours = {ALL_HEADS: ("all heads", "black")} | {rank: (f"rank {rank}", colour_of(rank)) for rank in ranks}
    for axis, column, title in zip(axes, ("left", "brought"), ("left", "brought into the benign run"), strict=True):
        series = {
            who: (points(paths[paths["rank"] == rank], "edges", column), colour)
            for rank, (who, colour) in colours.items()
        }
        draw_dots(axis, EDGE_WORDS, series)
        axis.set_ylabel(f"backdoor accuracy\n{title}")
    axes[0].set_title(f"{name}, {plural(paths['run'].nunique())}", fontsize=11)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(colours), frameon=False, fontsize=9)
    return figure


def curve_figure(curve: pd.DataFrame, threshold: float) -> Figure:
    """In which share of the runs exactly one head is costly: lines, with bands for all of ours and for the paper's.

    Args:
        curve: a row per series (`whose`) and threshold, with Wilson's interval.
        threshold: to mark.
    """
    figure = new_figure(6.4, 4)
    axis = figure.subplots()
    for name, rows in curve.groupby("whose", sort=False):
        colour = PAPER if name == "the paper" else OURS
        label = f"{name} ({rows['n_runs'].iloc[0]})"
        line = STATE_LINES.get(str(name).removeprefix("ours, "), "-")
        axis.plot(rows["threshold"], rows["rate"], line, color=colour, label=label, linewidth=1.6)
        if name in ("ours, all", "the paper"):
            axis.fill_between(rows["threshold"], rows["wilson95_low"], rows["wilson95_high"], color=colour, alpha=0.15)
    axis.axvline(threshold, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel="cost from which a head counts as costly", ylabel="share of runs with exactly one", ylim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def fitted_figure(name: str, runs: pd.DataFrame) -> Figure:
    """Seeds crossed with splits: the step by which each run fitted; a cross if it is not fitted at the end.

    Args:
        name: of the group.
        runs: one row each: `seed`, `split`, `fitted_step`, and whether it `is_fitted` at the end.
    """
    seeds, splits = sorted(runs["seed"].unique()), sorted(runs["split"].unique())
    figure = new_figure(1.9 + 0.62 * len(seeds), 1.5 + 0.5 * len(splits))
    axis = figure.subplots()
    steps = runs.pivot(index="split", columns="seed", values="fitted_step").reindex(index=splits, columns=seeds)
    first, last = runs["fitted_step"].agg(["min", "max"]).fillna(0)
    mesh = axis.pcolormesh(steps.astype("float64"), cmap="viridis_r", vmin=first, vmax=last)
    mesh.set(edgecolor="white", linewidth=2)
    axis.set_facecolor("0.88")
    for run in runs.itertuples():
        x, y = seeds.index(run.seed) + 0.5, splits.index(run.split) + 0.5
        colour = "white" if pd.notna(run.fitted_step) and run.fitted_step > (first + last) / 2 else "black"
        if not run.is_fitted:
            axis.plot(x, y, "x", color=colour, markersize=11, markeredgewidth=2)
        else:
            axis.text(x, y, f"{run.fitted_step:,}", ha="center", va="center", fontsize=8, color=colour)
    axis.set(xticks=np.arange(len(seeds)) + 0.5, xticklabels=seeds, xlabel="seed")
    axis.set(yticks=np.arange(len(splits)) + 0.5, yticklabels=splits, ylabel="split")
    axis.invert_yaxis()
    axis.set_title(f"{name}, {plural(len(runs))}", fontsize=11)
    figure.colorbar(mesh, ax=axis, label="fitted by step")
    return figure
