"""Figures of the MLP's neurons."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from lit_backdoor.functional import NeuronResult
from lit_backdoor.show.style import HEAD_COLOURS, new_figure


def neurons_figure(results: Mapping[str, NeuronResult]) -> Figure:
    """What is left of each rule as more and more neurons are made the donor's, and what the same neurons bring."""
    figure = new_figure(4.2 * len(results) + 0.4, 3.4)
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)
    for axis, (rule, result) in zip(axes[0], results.items(), strict=True):
        for curve, name, colour in (
            (result.left, "left", HEAD_COLOURS[1]),
            (result.brought, "brought", HEAD_COLOURS[0]),
        ):
            axis.plot(curve.counts, curve.accuracies, color=colour, label=f"{name} of {rule}")
            if curve.half is not None:
                axis.axvline(curve.half, color=colour, linewidth=0.9, linestyle=":", label=f"half {name}: {curve.half}")
        axis.set(title=f"{rule}: neurons patched, most effective first", xlabel="neurons", ylim=(-0.03, 1.05))
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9, loc="center right")
    axes[0, 0].set_ylabel("accuracy")
    return figure
