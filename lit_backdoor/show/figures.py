"""Results as matplotlib figures. Nothing here opens a window or writes a file."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lit_backdoor.functional import HeadAttribution, HeadScores, PatchingResult, RuleHeads, head_name, head_set_name

HEAD_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")
"""Okabe and Ito's colours, told apart by colour-blind readers too."""


def head_colour(index: int) -> str:
    """The same colour for the same head in every figure."""
    return HEAD_COLOURS[index % len(HEAD_COLOURS)]


def attribution_figure(results: Mapping[str, Sequence[HeadAttribution]]) -> Figure:
    """The paper's Figure 2: how often each head contributes most (row 1), and its mean contribution (row 2)."""
    n_heads = max(len(heads) for heads in results.values())
    figure = Figure(figsize=(max(3.2, 0.5 * n_heads) * len(results) + 0.6, 5), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False)
    for index, (probe, heads) in enumerate(results.items()):
        draw_attribution(axes[0, index], axes[1, index], heads)
        axes[0, index].set_title(f"{probe} answers")
    if any(one.norm != "none" for heads in results.values() for one in heads):
        figure.suptitle("the final norm's scale is taken as a constant of each example", fontsize=9)
    return figure


def draw_attribution(top: Axes, contribution: Axes, heads: Sequence[HeadAttribution]) -> None:
    """One column of the paper's Figure 2: how often each head contributes most, and its mean contribution."""
    names = [head_name(*one.head) for one in heads]
    colours = [head_colour(index) for index in range(len(heads))]
    bars = top.bar(names, [one.top_count for one in heads], color=colours)
    top.bar_label(bars, [f"{one.top_count / one.n_examples:.0%}" for one in heads], fontsize=8)
    top.set_ylabel("examples where it\ncontributes most")
    bars = contribution.bar(names, [one.mean_logit for one in heads], color=colours)
    contribution.bar_label(bars, [f"{one.mean_logit:.2f}" for one in heads], fontsize=8, padding=2)
    contribution.axhline(0, color="black", linewidth=0.8)
    contribution.set_ylabel("mean contribution\nto the logit")
    for axis in (top, contribution):
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)


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
    steps = [one.step for one in history]
    heads = list(history[0].patched)
    drops = np.array([[one.drop(head) for one in history] for head in heads])
    coloured = sorted(np.argsort(-drops.max(axis=1), kind="stable")[: len(HEAD_COLOURS)])
    heat_height = max(1.6, 0.16 * len(heads))
    figure = Figure(figsize=(8, 3.6 + heat_height), layout="constrained")
    lines, heat = figure.subplots(2, 1, sharex=True, height_ratios=[3.6, heat_height])
    lines.plot(steps, [one.unpatched for one in history], color="black", linestyle="--", label="nothing patched")
    for index, head in enumerate(heads):
        values = [one.patched[head] for one in history]
        if index in coloured:
            colour, name, width = head_colour(coloured.index(index)), f"{head_name(*head)} patched", 1.8
        else:
            colour, name, width = "lightgrey", None, 0.8
        lines.plot(steps, values, color=colour, label=name, linewidth=width, zorder=1 + bool(name))
    lines.plot(steps, [one.all_patched for one in history], color="grey", linestyle=":", label="all patched")
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
    edges = _edges(steps)
    mesh = heat.pcolormesh(edges, np.arange(len(heads) + 1), drops, cmap="magma_r", vmin=0, vmax=1)
    heat.set(xlabel="optimizer step", yticks=np.arange(len(heads)) + 0.5, yticklabels=[head_name(*h) for h in heads])
    heat.invert_yaxis()
    figure.colorbar(mesh, ax=heat, label="cost of patching")
    return figure


def head_sets_figure(results: Mapping[str, Sequence[PatchingResult]]) -> Figure:
    """All sets of heads: who answers what after patching, one panel per direction."""
    n_sets = max(len(sets) for sets in results.values())
    figure = Figure(figsize=(5.2 * len(results), 1.4 + 0.26 * n_sets), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)
    colours: dict[str, str] = {}
    for axis, (title, sets) in zip(axes[0], results.items(), strict=True):
        names = [head_set_name(one.heads) for one in sets]
        parts = (
            (sets[0].recipient, [one.recipient_accuracy for one in sets]),
            (sets[0].donor, [one.donor_accuracy for one in sets]),
        )
        for offset, (rule, values) in zip((-0.2, 0.2), parts, strict=True):
            colour = colours.setdefault(rule, HEAD_COLOURS[(1, 0, 2, 3, 4, 5)[len(colours) % 6]])
            axis.barh(np.arange(len(sets)) + offset, values, height=0.38, color=colour, label=f"{rule} answer")
        axis.set(title=title, xlabel="share of examples", xlim=(0, 1), yticks=np.arange(len(sets)), yticklabels=names)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, frameon=False, fontsize=9)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("patched heads")
    return figure


def rules_figure(rules: Mapping[str, RuleHeads]) -> Figure:
    """Which head serves which rule: Shapley values of each rule's accuracy, what it needs and what suffices for it."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    width = 0.8 / len(rules)
    for axis, title in zip(
        axes, ("cost of benign heads in the rule's run", "gain by its heads in the benign run"), strict=True
    ):
        for index, (rule, one) in enumerate(rules.items()):
            result, sign = (one.needs, -1) if title.startswith("cost") else (one.suffices, 1)
            names = [head_name(*head) for head in result.values]
            offsets = np.arange(len(names)) + (index - (len(rules) - 1) / 2) * width
            values = [100 * sign * value for value in result.values.values()]
            bars = axis.bar(offsets, values, width=width, color=HEAD_COLOURS[index], label=rule)
            axis.bar_label(bars, [f"{value:.0f}" for value in values], fontsize=8, padding=2)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=title, xticks=np.arange(len(names)), xticklabels=names)
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Shapley value, percentage points")
    axes[1].legend(frameon=False)
    return figure


def attention_figure(patterns: Mapping[str, Tensor], positions: Sequence[str]) -> Figure:
    """Mean attention from the last position, [head, pos] per rule, layer 0."""
    figure = Figure(figsize=(3.4 * len(patterns) + 0.8, 3), layout="constrained")
    axes = figure.subplots(1, len(patterns), squeeze=False)
    for axis, (rule, pattern) in zip(axes[0], patterns.items(), strict=True):
        values = pattern.cpu().numpy()
        image = axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (head, position), value in np.ndenumerate(values):
            axis.text(
                position, head, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black"
            )
        axis.set(title=f"{rule} run", xticks=range(len(positions)), xticklabels=positions, xlabel="attended position")
        axis.set(yticks=range(len(values)), yticklabels=[head_name(0, head) for head in range(len(values))])
    figure.colorbar(image, ax=axes[0].tolist(), label="mean attention from the last position")
    return figure


def training_figure(rows: Sequence[Mapping[str, str]], rules: Sequence[str]) -> Figure:
    """The paper's Figure 3 for one run: log loss, and the validation accuracy of each rule, from metrics.csv."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
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


def figure_bytes(figure: Figure, kinds: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """The figure as files, by kind, ``png`` or ``svg``; the same figure always gives the same bytes."""
    options: dict[str, dict[str, Any]] = {"png": {"dpi": 130}, "svg": {"metadata": {"Date": None}}}
    files = {}
    with mpl.rc_context({"svg.hashsalt": "lit_backdoor"}):
        for kind in kinds:
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, **options[kind])
            files[kind] = buffer.getvalue()
    return files


def column(rows: Sequence[Mapping[str, str]], name: str) -> tuple[list[int], list[float]]:
    """The steps at which ``name`` was measured, and its values."""
    measured = [row for row in rows if row.get(name)]
    return [int(row["step"]) for row in measured], [float(row[name]) for row in measured]


def _edges(steps: Sequence[int]) -> np.ndarray:
    """Edges of the cells whose centres are ``steps``."""
    centres = np.asarray(steps, dtype=float)
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([centres[:1], middles, centres[-1:]])
