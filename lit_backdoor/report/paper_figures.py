"""The paper's Figures 2 to 8, in its form."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lit_backdoor.functional import HeadAttribution
from lit_backdoor.report.runs import Run
from lit_backdoor.show.heads import draw_attribution

EXPERIMENTS = {5: (0, 1), 6: (1, 4), 7: (4, 7), 8: (7, 10)}
"""Which of ten experiments each figure shows, from and to (excluded)."""

STAGES = {"train": ("training", "#0072b2"), "val": ("validation", "#d55e00")}


def first_seeds(runs: Sequence[Run]) -> list[Run]:
    """The run with the lowest seed of each model, the clean one first."""
    first: dict[int | None, Run] = {}
    for run in runs:
        first.setdefault(run.p1, run)
    return list(first.values())


def attribution_by_model(runs: Sequence[Run], probe: str) -> Figure:
    """Figures 2 and 4: contributions of the heads to one rule's logits, a column per model."""
    return _attributions([{run.name: run.attribution[probe] for run in first_seeds(runs)}])


def figures_5_to_8(group: Sequence[Run]) -> dict[int, Figure]:
    """The same for the first ten runs of one model: two rows for each experiment, spread over the paper's figures."""
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


def training_by_model(runs: Sequence[Run]) -> Figure:
    """Figure 3: log loss and the accuracy of each rule against the step, a column per run."""
    accuracies = list(
        dict.fromkeys(name.partition("/")[2] for run in runs for name in run.metrics if name.endswith("_accuracy"))
    )
    figure = Figure(figsize=(3.1 * len(runs) + 0.9, 2.2 * (1 + len(accuracies))), layout="constrained")
    axes = figure.subplots(1 + len(accuracies), len(runs), squeeze=False, sharex="col", sharey="row")
    for position, run in enumerate(runs):
        for stage, (label, colour) in STAGES.items():
            for row, name in enumerate(("loss", *accuracies)):
                if (column := f"{stage}/{name}") not in run.metrics:
                    continue
                points = run.metrics[["step", column]].dropna()
                values = points[column]
                if row == 0:
                    values = np.log(values.where(values > 0))
                axes[row, position].plot(points["step"], values, color=colour, linewidth=1, label=label)
        axes[0, position].set_title(run.name, fontsize=11)
        axes[-1, position].set_xlabel("optimizer step")
        for row, name in enumerate(accuracies, start=1):
            if not any(column.endswith(f"/{name}") for column in run.metrics):
                axes[row, position].text(0.5, 0.5, "no such rule", ha="center", transform=axes[row, position].transAxes)
    for row, name in enumerate(("log loss", *accuracies)):
        axes[row, 0].set_ylabel(name.replace("_", " "))
        if row > 0:
            axes[row, 0].set_ylim(-0.03, 1.05)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure
