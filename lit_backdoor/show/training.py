"""Figures over training: losses and accuracies, heads and paths coming into being, waves."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lit_backdoor.functional import HeadScores, head_name
from lit_backdoor.show.style import HEAD_COLOURS, cell_edges, column, head_colour, new_figure

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


def training_figure(rows: Sequence[Mapping[str, str]], rules: Sequence[str]) -> Figure:
    """The paper's Figure 3 for one run: log loss, and the validation accuracy of each rule, from metrics.csv."""
    figure = new_figure(8, 4.6)
    loss, accuracy = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 1])
    for stage, colour in (("train", "#0072b2"), ("val", "#d55e00")):
        steps, values = column(rows, f"{stage}/loss")
        loss.semilogy(steps, values, color=colour, label={"train": "training", "val": "validation"}[stage], linewidth=1)
    loss.set(ylabel="loss")
    for index, rule in enumerate(rules):
        steps, values = column(rows, f"val/{rule}_accuracy")
        accuracy.plot(steps, values, color=HEAD_COLOURS[2 + index], label=f"{rule} rule")
    accuracy.set(xlabel="optimizer step", ylabel="validation accuracy", ylim=(-0.03, 1.05))
    for axis in (loss, accuracy):
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def emergence_figure(
    history: Sequence[HeadScores], metric: str, marks: Mapping[str, int | None] | None = None
) -> Figure:
    """A head coming into being: the recipient's accuracy against the step with each head patched alone (lines; of more
    than eight heads, the eight that once cost most have colours), and what patching each costs (head x step heat map).

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
    mesh = heat.pcolormesh(edges, np.arange(len(heads) + 1), drops, cmap="magma_r", vmin=0, vmax=1)
    heat.set(xlabel="optimizer step", yticks=np.arange(len(heads)) + 0.5, yticklabels=[head_name(*h) for h in heads])
    heat.invert_yaxis()
    figure.colorbar(mesh, ax=heat, label="cost of patching")
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
