"""The figure of removals."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lit_backdoor.functional import RemovalResult
from lit_backdoor.functional.retraining import staying_away_tells
from lit_backdoor.show.markdown_mechanism import weak_in_words
from lit_backdoor.show.style import HEAD_COLOURS, new_figure

METHOD_STYLES = {
    "none": ("untouched", "0.2", "*"),
    "mean": ("heads to their mean", HEAD_COLOURS[1], "o"),
    "donor": ("heads and edges see the benign trigger", HEAD_COLOURS[0], "D"),
    "reset": ("trigger's embedding reset", HEAD_COLOURS[3], "X"),
    "prune": ("smallest weights pruned", HEAD_COLOURS[2], "s"),
    "finetune": ("fine-tuned on benign examples", HEAD_COLOURS[4], "^"),
}
"""What each method is called, its colour and its marker."""

SHORT = 18
"""Targets with longer names have none beside their dots."""
WIDE, HIGH = 35.0, 4.0
"""The room that a name takes, in points of accuracy."""


def removal_figure(results: Mapping[str, Sequence[RemovalResult]], floors: Mapping[str, float]) -> Figure:
    """How much of a backdoor is left against what the benign rule lost: a dot for each removal, a panel a backdoor.

    A removal that works and costs nothing is at the lower left. Filled: the backdoor did not come back within the limit
    of retraining, where :func:`~lit_backdoor.functional.retraining.staying_away_tells`.

    Args:
        results: by backdoor.
        floors: of each backdoor's accuracy, drawn as a line.
    """
    figure = new_figure(4.8 * len(results) + 2.6, 4.4)
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)
    least_lost = min(result.benign_lost for of_backdoor in results.values() for result in of_backdoor)
    left = 100 * min(0.0, least_lost) - 4  # the benign accuracy may have risen
    for axis, (name, of_backdoor) in zip(axes[0], results.items(), strict=True):
        tells = staying_away_tells(of_backdoor)
        axis.axhline(100 * floors[name], color="0.6", linewidth=0.9, linestyle=":", zorder=0)
        for result in of_backdoor:
            _, colour, marker = METHOD_STYLES[result.method]
            x, y, filled = 100 * result.benign_lost, 100 * result.backdoor_left, tells and result.return_steps is None
            axis.plot(x, y, marker, color=colour, markerfacecolor=colour if filled else "none", markersize=8)
        for x, y, target in _labels(of_backdoor):
            axis.text(x, y, target, fontsize=7.5, va="center")
        axis.set_title(f"{name}\n{weak_in_words(of_backdoor)}".replace(": ", ":\n"), fontsize=9)
        axis.set(xlabel="benign accuracy lost, points", xlim=(left, 104), ylim=(-4, 104))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("accuracy of the backdoor left, %")
    for method in dict.fromkeys(result.method for of_backdoor in results.values() for result in of_backdoor):
        label, colour, marker = METHOD_STYLES[method]
        axes[0, -1].plot([], [], marker, color=colour, markerfacecolor="none", label=label)
    axes[0, -1].plot([], [], "o", color="0.4", label="filled: not back when retrained")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def _labels(results: Sequence[RemovalResult]) -> list[tuple[float, float, str]]:
    """The names of what leaves at most half and stays away, right of their dots, and none on another: x, y, name."""
    worth_it = [result for result in results if result.return_steps is None and result.backdoor_left <= 0.5]
    named = [result for result in worth_it if len(result.target) <= SHORT]
    placed: list[tuple[float, float, str]] = []
    for result in sorted(named, key=lambda result: result.backdoor_left):
        x, y = 100 * result.benign_lost + 2, 100 * result.backdoor_left
        below = [other for at, other, _ in placed if abs(at - x) < WIDE]
        placed.append((x, max([y, *(other + HIGH for other in below)]), result.target))
    return placed
