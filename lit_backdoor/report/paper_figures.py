"""The paper's Figures 2 to 8, in its form."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lit_backdoor.functional import HeadAttribution
from lit_backdoor.plotting import column, draw_attribution
from lit_backdoor.report.measures import groups, triggered
from lit_backdoor.report.runs import Run

EXPERIMENTS = {5: (0, 1), 6: (1, 4), 7: (4, 7), 8: (7, 10)}
"""Which of ten experiments each figure shows, from and to (excluded)."""

STAGES = {"train": ("training", "#0072b2"), "val": ("validation", "#d55e00")}


def first_seeds(runs: Sequence[Run]) -> list[Run]:
    """The run with the lowest seed of each model, the clean one first."""
    found: dict[int | None, Run] = {}
    for run in runs:
        found.setdefault(run.p1, run)
    return list(found.values())


def figure_2(runs: Sequence[Run]) -> Figure:
    """Contributions of the heads to the backdoor logits, a column per model."""
    return _attributions([{run.name: run.attribution["backdoor"] for run in first_seeds(triggered(runs))}])


def figure_4(runs: Sequence[Run]) -> Figure:
    """Contributions of the heads to the benign logits, a column per model."""
    return _attributions([{run.name: run.attribution["benign"] for run in first_seeds(runs)}])


def figures_5_to_8(runs: Sequence[Run]) -> dict[int, Figure]:
    """Figure 2 for each of ten experiments, two rows each, a column per model that has that experiment's seed."""
    models = groups(runs)
    seeds = sorted({run.seed for run in triggered(runs)})
    found = {}
    for number, (start, end) in EXPERIMENTS.items():
        experiments = list(enumerate(seeds, start=1))[start:end]
        columns = [
            p1 for p1, group in models.items() if any(run.seed == seed for _, seed in experiments for run in group)
        ]
        rows = [
            {
                f"Experiment {index}: {run.name}" if run is not None else f"no mod {p1}, seed {seed}": (
                    [] if run is None else run.attribution["backdoor"]
                )
                for p1 in columns
                for run in [next((one for one in models[p1] if one.seed == seed), None)]
            }
            for index, seed in experiments
        ]
        if rows:
            found[number] = _attributions(rows)
    return found


def _attributions(experiments: Sequence[Mapping[str, Sequence[HeadAttribution]]]) -> Figure:
    n_columns = max(len(one) for one in experiments)
    figure = Figure(figsize=(3.1 * n_columns + 0.5, 4.8 * len(experiments)), layout="constrained")
    axes = figure.subplots(2 * len(experiments), n_columns, squeeze=False)
    for index, experiment in enumerate(experiments):
        pair = axes[2 * index : 2 * index + 2]
        for position, (title, heads) in enumerate(experiment.items()):
            top, contribution = pair[:, position]
            if heads:
                draw_attribution(top, contribution, heads)
                top.set_title(title, fontsize=11)
            else:
                top.set_axis_off()
                contribution.set_axis_off()
                top.set_title(title, fontsize=9, color="grey")
            if position > 0:
                top.set_ylabel("")
                contribution.set_ylabel("")
    return figure


def figure_3(runs: Sequence[Run]) -> Figure:
    """Log loss, benign and backdoor accuracy against the step, a column per model."""
    shown = first_seeds(runs)
    figure = Figure(figsize=(3.1 * len(shown) + 0.5, 6.6), layout="constrained")
    axes = figure.subplots(3, len(shown), squeeze=False, sharex="col", sharey="row")
    for position, run in enumerate(shown):
        for stage, (label, colour) in STAGES.items():
            steps, losses = column(run.metrics, f"{stage}/loss")
            logs = [math.log(loss) if loss > 0 else math.nan for loss in losses]
            axes[0, position].plot(steps, logs, color=colour, linewidth=1, label=label)
            for row, rule in enumerate(run.task.rule_names, start=1):
                steps, values = column(run.metrics, f"{stage}/{rule}_accuracy")
                axes[row, position].plot(steps, values, color=colour, linewidth=1.2)
        axes[0, position].set_title(run.name, fontsize=11)
        if run.p1 is None:
            axes[2, position].text(0.5, 0.5, "no backdoor", ha="center", transform=axes[2, position].transAxes)
        axes[2, position].set_xlabel("optimizer step")
    for row, name in enumerate(("log loss", "benign accuracy", "backdoor accuracy")):
        axes[row, 0].set_ylabel(name)
        if row > 0:
            axes[row, 0].set_ylim(-0.03, 1.05)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure
