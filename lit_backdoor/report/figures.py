"""The figures of a report: the paper's, of the heads over seeds, and of whatever else the monitors recorded."""

from collections.abc import Mapping, Sequence
from math import isnan

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lit_backdoor.functional import HeadSpecificity, PositionAttention, parse_head_set
from lit_backdoor.functional.ranks import NONE, n_heads_of, rank_set_name, table_1_sets
from lit_backdoor.report.branches import branches_figure
from lit_backdoor.report.crossed import crossed_groups
from lit_backdoor.report.declared import declared
from lit_backdoor.report.measures import counted, first_seeds, groups, of_group, triggered
from lit_backdoor.report.published import paper_table
from lit_backdoor.report.removal import removal_figures
from lit_backdoor.report.study import Study
from lit_backdoor.runs.run import Run, slug
from lit_backdoor.show import over_seeds
from lit_backdoor.show.circuit import circuit_figure
from lit_backdoor.show.heads import attention_shift_figure, attribution_figure, specificity_figure
from lit_backdoor.show.over_seeds import FOREIGN, OURS, PAPER, colour_of, dots_figure, points
from lit_backdoor.show.style import new_figure
from lit_backdoor.show.training import emergence_figure, progress_figure, training_figure
from lit_backdoor.show.wording import percent, plural

EXPERIMENTS = {5: (0, 1), 6: (1, 4), 7: (4, 7), 8: (7, 10)}
"""Which of ten experiments each figure shows, from and to (excluded)."""

MOST_RUNS = 10
"""So many runs of a group have a figure each, as the paper's ten experiments do."""


def report_figures(study: Study, frames: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figures of a report by name."""
    drawn: dict[str, Figure] = {}
    with_trigger = triggered(study.runs)
    attributed = [run for run in study.compared if run.attribution]
    if study.runs:
        first = first_seeds(study.compared)
        drawn["figure_3"] = training_figure({run.name: run.metrics for run in first})
    for number, probe in (("2", "backdoor"), ("4", "benign")):
        if some := [run for run in attributed if probe in run.attribution]:
            columns = {run.name: run.attribution[probe] for run in first_seeds(some)}
            drawn[f"figure_{number}"] = attribution_figure(columns)
    if with_trigger:
        drawn["strips"] = strips_figure(with_trigger)
    if "exactly_one" in frames:
        drawn["exactly_one"] = over_seeds.curve_figure(frames["exactly_one"], declared().threshold)
    drawn |= {
        f"fitted_{slug(name)}": over_seeds.fitted_figure(name, runs)
        for name, runs in crossed_groups(frames.get("seeds", pd.DataFrame()))
    }
    compared = {run.group for run in study.compared if run.p1 == 1}
    for name, group in groups(study.runs).items():
        rows_of, papers, figures = of_group(name, frames), name in compared, dict[str, Figure]()
        if len(sets := counted(rows_of["table2"])):
            figures["all_sets"] = over_seeds.all_sets_figure(name, sets)
        if sets["run"].nunique() > 1:
            figures["ranks"] = ranks_figure(name, sets, papers)
        if any(run.specificity for run in group):
            figures["specificity"] = specificity_by_run(name, group)
        for kind, table, draw in (
            ("shapley", "shapley", over_seeds.shapley_figure),
            ("paths", "paths", over_seeds.paths_figure),
            ("foreign", "foreign_embeddings", ranks_figure),
        ):
            if len(rows := rows_of.get(table, pd.DataFrame())):
                figures[kind] = draw(name, rows)
        drawn |= {f"{kind}_{slug(name)}": figure for kind, figure in figures.items()}
        own = [run for run in attributed if run in group]
        if papers or len(own) > 1:  # of a single run, Figure 2 shows the same
            suffix = "" if papers else f"_{slug(name)}"
            drawn |= {f"figure_{n}{suffix}": f for n, f in figures_5_to_8(own).items()}
        drawn |= {f"emergence_{slug(run.name)}": emergence_of(run) for run in group[:MOST_RUNS]}
        drawn |= {f"progress_{slug(run.name)}": progress_figure(run.progress) for run in group[:1] if run.progress}
    if study.branches:
        drawn["branches"] = branches_figure(study.branches)
    for run in study.others:
        drawn |= own_figures(run)
    return drawn | removal_figures(study.removed)


def figures_5_to_8(group: Sequence[Run]) -> dict[int, Figure]:
    """What the heads write to the backdoor's logit in the first ten runs of a group, as the paper's figures show it."""
    titled = [
        (f"Experiment {n}: {run.name.removeprefix(f'{run.group}, ')}", run.attribution["backdoor"])
        for n, run in enumerate(group, start=1)
    ]
    return {n: attribution_figure(dict(titled[a:b])) for n, (a, b) in EXPERIMENTS.items() if titled[a:b]}


def own_figures(run: Run) -> dict[str, Figure]:
    """The figures of one run, by name."""
    drawn = {probe: emergence_of(run, probe) for probe in run.probes}
    if run.attribution:
        drawn["attribution"] = attribution_figure(run.attribution)
    if attention := run.last_results("attention", PositionAttention):
        drawn["attention"] = attention_shift_figure(attention)
    specificity = run.last_results("head_specificity", HeadSpecificity)
    if shown := {probe: {run.step: heads} for probe, heads in specificity.items() if not isnan(heads[0].cost)}:
        drawn["specificity"] = specificity_figure(shown)
    for probe, paths in run.paths.items():
        if any(len(result.edges) == 1 for result in paths):
            drawn[f"{probe}_circuit"] = circuit_figure(paths)
    if "train/loss" in run.metrics or "val/loss" in run.metrics:
        drawn["training"] = training_figure({run.name: run.metrics})
    return {f"{own_prefix(run)}{name}": figure for name, figure in drawn.items()}


def own_prefix(run: Run) -> str:
    """How the figures of a run of another task begin: no other run's do, not even its branch's."""
    return f"own_{slug(run.name)}__"


def emergence_of(run: Run, probe: str = "backdoor") -> Figure:
    """One run: its accuracy against the step with each head patched alone."""
    marks = {}
    if probe == run.emergence.get("probe"):
        marks = {"generalised": run.emergence["generalised_step"]}
        if (head := run.emergence["head"]) is not None:
            marks[f"{head} alone"] = run.emergence["stable_exclusive_step"]
    figure = emergence_figure(run.history[probe], f"{run.patching[probe][0].recipient} accuracy", marks)
    title = run.name if probe == "backdoor" else f"{run.name}: {probe}"
    figure.axes[0].set_title(title, loc="left", fontsize=11, pad=28)  # above the names of the marks
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
            bar = share.barh(y, value, height=0.62, color="#7f7f7f")
            share.bar_label(bar, [percent(value, 0)], padding=3, fontsize=8)
    ranks = range(1, n_ranks + 1)
    handles: list[Artist] = [Patch(color=colour_of(rank), label=f"rank {rank} costs most") for rank in ranks]
    handles += time.plot([], [], "kv", linestyle="none", label="generalised")
    handles += time.plot([], [], "k*", linestyle="none", markersize=11, label="one head alone for good")
    names = [f"{run.name}{f' ({run.state})' if run.state else ''}" for run in runs]
    time.set(xlabel="optimizer step", xlim=(0, None), yticks=range(len(runs)), yticklabels=names)
    time.set_ylim(len(runs) - 0.4, -0.6)  # the first run on top
    share.axvline(1 / n_ranks, color="black", linewidth=0.8, linestyle=":")
    share.set(xlabel="largest Shapley share", xlim=(0, 1.18), xticks=[0, 0.5, 1])
    for axis in (time, share):
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def ranks_figure(name: str, sets: pd.DataFrame, papers: bool = False) -> Figure:
    """The runs of one model: what is left after patching, by rank.

    Args:
        name: of the model.
        sets: of `head_sets`, or of `foreign_rows`, then with the notebook's bug beside.
        papers: whether the paper's experiments of mod 1 stand beside them.
    """
    n_heads, n_runs = n_heads_of(sets["ranks"]), int((sets["ranks"] == NONE).sum())
    foreign = "foreign_backdoor_accuracy" in sets
    ours = points(sets, "ranks", "backdoor_accuracy")
    series = {"patched properly" if foreign else f"ours, {plural(n_runs)}": (ours, OURS)}
    if foreign:
        series["with the notebook's bug"] = (points(sets, "ranks", "foreign_backdoor_accuracy"), FOREIGN)
    elif papers and n_heads == 4:
        table = paper_table("Table 2")
        series[f"the paper, {len(table)} experiments"] = (table.to_dict("list"), PAPER)
    places = {ranks: rank_set_name(ranks, n_heads) for ranks in table_1_sets(n_heads)}
    return dots_figure(f"{name}, {plural(n_runs)}", "backdoor accuracy left", places, series)


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
                axis.plot(trail["cost"], trail["donor_cost"], ".-", color=colour_of(rank), linewidth=0.7, alpha=0.4)
            edge = {"markeredgecolor": "black", "markersize": 8} if rank == 1 else {"markersize": 6}
            axis.plot(both.cost, both.donor_cost, "o", color=colour_of(rank), alpha=0.8, **edge)
    for rank in range(1, len(group[0].order) + 1):
        axis.plot([], [], "o", color=colour_of(rank), label=f"rank {rank}")
    axis.set(xlabel="cost to the backdoor", ylabel="cost to the benign rule", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axis.set_title(f"{name}, {plural(len(group))}", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
