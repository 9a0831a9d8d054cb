"""The paper's Figures 2 to 8, in its form."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lit_backdoor.functional import HeadAttribution
from lit_backdoor.report.measures import triggered
from lit_backdoor.report.runs import Run
from lit_backdoor.show.heads import draw_attribution
from lit_backdoor.show.style import column

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


def figures_5_to_8(group: Sequence[Run]) -> dict[int, Figure]:
    """The same for the first ten seeds of one model: two rows for each experiment, spread over the paper's figures."""
    figures = {}
    for number, (start, end) in EXPERIMENTS.items():
        experiments = [
            {f"Experiment {index + 1}: {group[index].name}": group[index].attribution["backdoor"]}
            for index in range(start, min(end, len(group)))
        ]
        if experiments:
            figures[number] = _attributions(experiments)
    return figures


def _attributions(experiments: Sequence[Mapping[str, Sequence[HeadAttribution]]]) -> Figure:
    """Two rows for each experiment, a column for each of its models."""
    n_columns = len(experiments[0])
    figure = Figure(figsize=(3.1 * n_columns + 0.7, 4.6 * len(experiments)), layout="constrained")
    axes = figure.subplots(2 * len(experiments), n_columns, squeeze=False)
    for index, experiment in enumerate(experiments):
        for position, (title, heads) in enumerate(experiment.items()):
            top, contribution = axes[2 * index, position], axes[2 * index + 1, position]
            draw_attribution(top, contribution, heads)
            top.set_title(title, fontsize=11)
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
