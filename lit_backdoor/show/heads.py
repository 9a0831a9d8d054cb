"""Figures of heads at one step: what each contributes, what patching costs, which rule it serves, where it looks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_backdoor.functional import (
    Head,
    HeadAttribution,
    HeadSpecificity,
    PatchingResult,
    PositionAttention,
    RuleHeads,
    head_name,
    head_set_name,
)
from lit_backdoor.show.style import HEAD_COLOURS, head_colour, new_figure


def attribution_figure(results: Mapping[str, Sequence[HeadAttribution]]) -> Figure:
    """The paper's Figure 2: how often each head contributes most (row 1), and its mean contribution (row 2).

    Args:
        results: by the title of a column.
    """
    n_heads = max(len(heads) for heads in results.values())
    figure = new_figure(max(3.2, 0.5 * n_heads) * len(results) + 0.6, 5)
    axes = figure.subplots(2, len(results), squeeze=False)
    for index, (title, heads) in enumerate(results.items()):
        _draw_attribution(axes[0, index], axes[1, index], heads)
        axes[0, index].set_title(title, fontsize=11)
    for axis in axes[:, 1:].flat:
        axis.set_ylabel("")
    if any(result.norm != "none" for heads in results.values() for result in heads):
        figure.suptitle("the final norm's scale is taken\nas a constant of each example", fontsize=9)
    return figure


def _draw_attribution(top: Axes, contribution: Axes, heads: Sequence[HeadAttribution]) -> None:
    """One column of the paper's Figure 2: how often each head contributes most, and its mean contribution."""
    names = [head_name(*result.head) for result in heads]
    colours = [head_colour(index) for index in range(len(heads))]
    bars = top.bar(names, [result.top_count for result in heads], color=colours)
    top.bar_label(bars, [f"{result.top_count / result.n_examples:.0%}" for result in heads], fontsize=8)
    top.set_ylabel("examples where it\ncontributes most")
    bars = contribution.bar(names, [result.mean_logit for result in heads], color=colours)
    contribution.bar_label(bars, [f"{result.mean_logit:.2f}" for result in heads], fontsize=8, padding=2)
    contribution.axhline(0, color="black", linewidth=0.8)
    contribution.set_ylabel("mean contribution\nto the logit")
    for axis in (top, contribution):
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)


def head_sets_figure(results: Mapping[str, Sequence[PatchingResult]]) -> Figure:
    """All sets of heads: who answers what after patching, one panel per direction."""
    n_sets = max(len(sets) for sets in results.values())
    figure = new_figure(5.2 * len(results), 1.4 + 0.26 * n_sets)
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)
    colours: dict[str, str] = {}
    for axis, (title, sets) in zip(axes[0], results.items(), strict=True):
        names = [head_set_name(result.heads) for result in sets]
        parts = (
            (sets[0].recipient, [result.recipient_accuracy for result in sets]),
            (sets[0].donor, [result.donor_accuracy for result in sets]),
        )
        for offset, (rule, values) in zip((-0.2, 0.2), parts, strict=True):
            colour = colours.setdefault(rule, HEAD_COLOURS[(1, 0, 2, 3, 4, 5)[len(colours) % 6]])
            axis.barh(np.arange(len(sets)) + offset, values, height=0.38, color=colour, label=f"{rule} answer")
        axis.set(title=title, xlabel="share of examples", xlim=(0, 1), yticks=np.arange(len(sets)), yticklabels=names)
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, frameon=False, fontsize=9)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("patched heads")
    return figure


def rules_figure(rules: Mapping[str, RuleHeads]) -> Figure:
    """Which head serves which rule: Shapley values of each rule's accuracy, what it needs and what suffices for it."""
    figure = new_figure(9, 3.4)
    axes = figure.subplots(1, 2)
    width = 0.8 / len(rules)
    for axis, title in zip(
        axes, ("cost of benign heads in the rule's run", "gain by its heads in the benign run"), strict=True
    ):
        for index, (rule, heads) in enumerate(rules.items()):
            result, sign = (heads.needs, -1) if title.startswith("cost") else (heads.suffices, 1)
            names = [head_name(*head) for head in result.values]
            offsets = np.arange(len(names)) + (index - (len(rules) - 1) / 2) * width
            values = [100 * sign * value for value in result.values.values()]
            bars = axis.bar(offsets, values, width=width, color=head_colour(index), label=rule)
            axis.bar_label(bars, [f"{value:.0f}" for value in values], fontsize=8, padding=2)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=title, xticks=np.arange(len(names)), xticklabels=names)
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Shapley value, percentage points")
    axes[1].legend(frameon=False)
    return figure


def attention_figure(patterns: Mapping[str, Sequence[PositionAttention]], positions: Sequence[str] = ()) -> Figure:
    """Mean attention from the position that is read, [head, pos] per run.

    Args:
        patterns: of all heads and positions, by run.
        positions: what the positions are called; empty for their numbers.
    """
    panels = {f"{run} run": [result.attention for result in results] for run, results in patterns.items()}
    heads = [result.head for result in next(iter(patterns.values())) if result.position == 0]
    colours = {"cmap": "Blues", "vmin": 0, "vmax": 1}
    return _heads_by_position(panels, heads, positions, "mean attention", ".2f", colours)


def attention_shift_figure(results: Mapping[str, Sequence[PositionAttention]], positions: Sequence[str] = ()) -> Figure:
    """How the counterfactual moves each head's attention, [head, pos] per panel; one panel for each title.

    Args:
        results: of all heads and positions, by title.
        positions: what the positions are called; empty for their numbers.
    """
    panels = {title: [result.shift for result in of_panel] for title, of_panel in results.items()}
    heads = [result.head for result in next(iter(results.values())) if result.position == 0]
    colours = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
    return _heads_by_position(panels, heads, positions, "shift of attention", "+.2f", colours)


def _heads_by_position(
    panels: Mapping[str, Sequence[float]],
    heads: Sequence[Head],
    positions: Sequence[str],
    what: str,
    form: str,
    colours: Mapping[str, Any],
) -> Figure:
    """A heat map for each panel, its values row by row [head, pos]; small ones have their numbers written in."""
    n_positions = max(len(values) for values in panels.values()) // len(heads)
    size = (max(3.4, 0.3 * n_positions) * len(panels) + 0.8, max(3.0, 0.22 * len(heads) + 1))
    figure = new_figure(*size)
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        cells = np.array(values).reshape(len(heads), -1)
        image = axis.imshow(cells, aspect="auto", **colours)
        if cells.size <= 64:
            for (head, position), value in np.ndenumerate(cells):
                colour = "white" if abs(value) > 0.6 else "black"
                axis.text(position, head, format(value, form), ha="center", va="center", color=colour)
        names = positions or [str(position) for position in range(cells.shape[1])]
        axis.set(title=title, xticks=range(len(names)), xticklabels=names, xlabel="attended position")
        axis.set(yticks=range(len(heads)), yticklabels=[head_name(*head) for head in heads])
        axis.title.set_fontsize(10)
    figure.colorbar(image, ax=axes[0].tolist(), label=what)
    return figure


def specificity_figure(results: Mapping[str, Mapping[int, Sequence[HeadSpecificity]]]) -> Figure:
    """What each head costs the recipient's rule and what the donor's: a dot for each head, a trail over training.

    A head that serves the recipient's rule alone is at the lower right.

    Args:
        results: by probe and step.
    """
    figure = new_figure(4.3 * len(results) + 0.4, 4)
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)
    for axis, (probe, by_step) in zip(axes[0], results.items(), strict=True):
        for index, last in enumerate(by_step[max(by_step)]):
            trail = [(by_step[step][index].cost, by_step[step][index].donor_cost) for step in sorted(by_step)]
            colour, name = head_colour(index), head_name(*last.head)
            axis.plot(*zip(*trail, strict=True), color=colour, linewidth=1, alpha=0.5, marker=".", markersize=3)
            axis.plot(last.cost, last.donor_cost, "o", color=colour, markersize=8, label=name)
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
        axis.margins(0.08)
        axis.set(title=probe, xlabel="cost to its rule")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("cost to the donor's rule when ablated")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure
