"""Figures over training: losses and accuracies, heads and paths coming into being, waves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from lit_backdoor.functional import HeadProgress, HeadScores, head_name
from lit_backdoor.show.style import HEAD_COLOURS, cell_edges, head_colour, new_figure

if TYPE_CHECKING:
    from pandas import DataFrame

STAGES = {"train": ("training", "#0072b2"), "val": ("validation", "#d55e00")}
GROUP_STYLES = {
    "Q": ("#0072b2", "-"),
    "K": ("#e69f00", "-"),
    "V": ("#009e73", "-"),
    "QK": ("#0072b2", "--"),
    "QKV": ("#009e73", "--"),
    "D": ("#7f7f7f", "-"),
    "A_mlp": ("#d55e00", "-"),
    "A_logits": ("#cc79a7", "-"),
}
"""Colour and line of every group of edges, in all figures."""
GROUP_NAMES = {"D": "past heads", "A_mlp": "heads>MLP", "A_logits": "heads>logits"}
"""What figures call a group, where its name alone says little."""

PROGRESS_LOSSES = {
    "loss": ("all pairs", "#d55e00", "-"),
    "restricted_loss": ("restricted", "#d55e00", "--"),
    "train_loss": ("training pairs", "#0072b2", "-"),
    "excluded_loss": ("excluded", "#0072b2", "--"),
}
PROGRESS_SHARES = {"explained": ("key waves", "#009e73", "-"), "constant": ("constant", "#7f7f7f", "-")}
"""Label, colour and line of what `progress_figure` draws."""


def training_figure(metrics: "Mapping[str, DataFrame]") -> Figure:
    """The paper's Figure 3: log loss and the accuracy of each rule against the step, a column per run.

    Args:
        metrics: by the name of the run, its metrics.csv.
    """
    names = [name for table in metrics.values() for name in table if name.endswith("_accuracy")]
    accuracies = list(dict.fromkeys(name.partition("/")[2] for name in names))
    figure = new_figure(3.1 * len(metrics) + 0.9, 2.2 * (1 + len(accuracies)))
    axes = figure.subplots(1 + len(accuracies), len(metrics), squeeze=False, sharex="col", sharey="row")
    for position, (run, table) in enumerate(metrics.items()):
        for row, name in enumerate(("loss", *accuracies)):
            axis = axes[row, position]
            for stage, (label, colour) in STAGES.items():
                if (column_name := f"{stage}/{name}") in table:
                    points = table[["step", column_name]].dropna()
                    values = points[column_name]
                    values = np.log(values.where(values > 0)) if row == 0 else values
                    axis.plot(points["step"], values, color=colour, linewidth=1, label=label)
            if not any(f"{stage}/{name}" in table for stage in STAGES):
                axis.text(0.5, 0.5, "no such rule", ha="center", transform=axis.transAxes)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0, position].set_title(run, fontsize=11)
        axes[-1, position].set_xlabel("optimizer step")
    axes[0, 0].set_ylabel("log loss")
    for row, name in enumerate(accuracies, start=1):
        axes[row, 0].set(ylabel=name.replace("_", " "), ylim=(-0.03, 1.05))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def emergence_figure(
    history: Sequence[HeadScores], metric: str, marks: Mapping[str, int | None] | None = None
) -> Figure:
    """A head coming into being: the recipient's accuracy against the step with each head patched alone (lines; of more
    than eight heads, the eight that once cost most have colours), and how much of it patching each takes
    away (head x step heat map).

    Args:
        history: of one probe.
        metric: name of the accuracy, for the axis.
        marks: moments to mark, by name, in steps.
    """
    steps = [scores.step for scores in history]
    heads = list(history[0].patched)
    drops = np.array([[scores.drop(head) for scores in history] for head in heads])
    coloured = sorted(np.argsort(-drops.max(axis=1), kind="stable")[: len(HEAD_COLOURS)])
    heat_height = max(1.6, 0.16 * len(heads))
    figure = new_figure(8, 3.6 + heat_height)
    lines, heat = figure.subplots(2, 1, sharex=True, height_ratios=[3.6, heat_height])
    lines.plot(steps, [scores.unpatched for scores in history], color="black", linestyle="--", label="nothing patched")
    for index, head in enumerate(heads):
        values = [scores.patched[head] for scores in history]
        if index in coloured:
            colour, name, width = head_colour(coloured.index(index)), f"{head_name(*head)} patched", 1.8
        else:
            colour, name, width = "lightgrey", None, 0.8
        lines.plot(steps, values, color=colour, label=name, linewidth=width, zorder=1 + bool(name))
    lines.plot(steps, [scores.all_patched for scores in history], color="grey", linestyle=":", label="all patched")
    lines.set(ylabel=metric, ylim=(-0.03, 1.05))
    lines.spines[["top", "right"]].set_visible(False)
    reached = {name: step for name, step in (marks or {}).items() if step is not None}
    for index, (name, step) in enumerate(reached.items()):
        for axis in (lines, heat):
            axis.axvline(step, color="black", linewidth=0.8, alpha=0.6)
        late = step > (steps[0] + steps[-1]) / 2  # a name stays over the lines
        place, side = (-3 if late else 3, 6 + 9 * index), "right" if late else "left"
        lines.annotate(name, (step, 1.0), xytext=place, ha=side, textcoords="offset points", fontsize=8)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    edges = cell_edges(steps)
    cells = {"cmap": "magma_r", "vmin": 0, "vmax": 1, "rasterized": True}  # a picture in the SVG, not a path per cell
    mesh = heat.pcolormesh(edges, np.arange(len(heads) + 1), drops, **cells)
    heat.set(xlabel="optimizer step", yticks=np.arange(len(heads)) + 0.5, yticklabels=[head_name(*h) for h in heads])
    heat.invert_yaxis()
    figure.colorbar(mesh, ax=heat, label="accuracy lost by patching")
    return figure


def edge_groups_figure(history: Mapping[int, Mapping[str, tuple[float, float]]], recipient: str, donor: str) -> Figure:
    """Paths coming into being: what is left of the recipient's answers when a group of edges sees the donor, and what
    the group brings of the donor's.

    Args:
        history: by step, the recipient's and the donor's accuracy for ``none`` and each group of edges.
        recipient: name of the run that is patched.
        donor: name of the run that the edges see.
    """
    figure = new_figure(9.5, 3.8)
    axes = figure.subplots(1, 2, sharey=True, sharex=True)
    steps = sorted(history)
    groups = [name for name in history[steps[-1]] if name != "none"]
    titles = (f"{recipient} answers left", f"{donor} answers brought")
    for index, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        none = [history[step]["none"][index] for step in steps]
        axis.plot(steps, none, color="black", linewidth=1, linestyle=":", label="nothing patched")
        for group in groups:
            colour, line = GROUP_STYLES[group]
            values = [history[step][group][index] for step in steps]
            marker = "o" if len(steps) == 1 else None
            axis.plot(
                steps,
                values,
                color=colour,
                linestyle=line,
                marker=marker,
                linewidth=1.8,
                label=GROUP_NAMES.get(group, group),
            )
        axis.set(title=f"{title}, edges see the {donor} run", xlabel="optimizer step", ylim=(-0.03, 1.05))
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of examples")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def progress_figure(history: Mapping[str, Mapping[int, Sequence[HeadProgress]]]) -> Figure:
    """How far each rule is computed with waves, and what its examples do to each head; a column for each rule.

    Top down: losses (excluded far above the training loss: the key waves do the work; restricted below the loss: the
    rest only disturbs); shares of the logits; the key frequencies, a dot at each step at which one is key; each head's
    share of the rule's gradient; its cosine with the first rule's gradient, in whose column norms stand instead.

    Args:
        history: by rule and step, one entry per head.
    """
    figure = new_figure(4.6 * len(history) + 1.2, 11)
    axes = figure.subplots(5, len(history), squeeze=False, sharex=True)
    for position, (rule, by_step) in enumerate(history.items()):
        losses, parts, keys, gradients, last = axes[:, position]
        steps, results = sorted(by_step), [by_step[step] for step in sorted(by_step)]
        style = {"marker": "." if len(steps) < 30 else None, "linewidth": 1.5}
        for axis, names in ((losses, PROGRESS_LOSSES), (parts, PROGRESS_SHARES)):
            for name, (label, colour, line) in names.items():
                values = [getattr(heads[0], name) for heads in results]
                axis.plot(steps, values, line, color=colour, label=label, **style)
        points = [(step, key) for step, heads in zip(steps, results, strict=True) for key in heads[0].key]
        if points:
            keys.plot(*zip(*points, strict=True), "s", color="#0072b2", markersize=3)
        else:
            keys.text(0.5, 0.5, "none", ha="center", transform=keys.transAxes)
            keys.set_yticks([])
        for index, head in enumerate(results[-1]):
            colour, name = head_colour(index), head_name(*head.head)
            gradients.plot(steps, [heads[index].gradient_share for heads in results], color=colour, label=name, **style)
            for column, line in (("qk_norm", "-"), ("ov_norm", "--")) if position == 0 else (("cosine", "-"),):
                last.plot(steps, [getattr(heads[index], column) for heads in results], line, color=colour, **style)
        losses.set(title=f"{rule} rule, mod {results[-1][0].modulus}", yscale="log")
        last.set(xlabel="optimizer step", ylabel="" if position else "norm: QK (-), OV (--)")
        if position:
            last.axhline(0, color="black", linewidth=0.6)
            last.set(ylabel="cosine with\nthe first rule", ylim=(-1.05, 1.05))
        for axis in (parts, gradients):
            axis.set_ylim(-0.03, 1.05)
    for axis, name in zip(
        axes[:, 0], ("loss, nats", "share of the logits", "key frequency", "gradient share"), strict=False
    ):
        axis.set_ylabel(name)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    for axis in (axes[0, -1], axes[1, -1], axes[3, -1]):
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure
