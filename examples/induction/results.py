"""What one induction run shows: python examples/induction/results.py RUN_DIR PICTURE.png

Prints where the loss bends, when a head emerged, and what each head does at the end; draws the three against the step.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lit_backdoor.runs.tables import read_table
from lit_backdoor.show.style import head_colour

Curve = tuple[list[int], list[float]]
"""Steps and values."""


def loss_bend(steps: Sequence[int], losses: Sequence[float], window: int = 5) -> tuple[int, int, int]:
    """Where a loss falls most steeply: the step at which that begins, the steepest one, and the step at which it ends.

    The loss, a running mean over ``window`` measurements, falls at least half as fast between the two as at the
    steepest step. A loss that never bends has a steepest step too: look at the picture.

    Raises:
        ValueError: if there are fewer than ``window + 1`` measurements.
    """
    if len(losses) <= window:
        raise ValueError(f"{len(losses)} measurements of the loss are too few to see it bend: {window + 1} or more")
    smooth, centres = (np.convolve(values, np.full(window, 1 / window), "valid") for values in (losses, steps))
    slope = np.gradient(smooth, centres)
    start = end = steepest = int(slope.argmin())
    while start > 0 and slope[start - 1] <= slope[steepest] / 2:
        start -= 1
    while end < len(slope) - 1 and slope[end + 1] <= slope[steepest] / 2:
        end += 1
    return round(centres[start]), round(centres[steepest]), round(centres[end])


def column(rows: Sequence[Mapping[str, str]], name: str) -> tuple[list[int], list[float]]:
    """The steps at which ``name`` was measured, and its values."""
    measured = [row for row in rows if row.get(name)]
    return [int(row["step"]) for row in measured], [float(row[name]) for row in measured]


class Run:
    """The tables of a run directory, by head."""

    def __init__(self, run_dir: Path) -> None:
        self.metrics = read_table(run_dir / "metrics.csv")
        self.patching = read_table(run_dir / "head_patching.csv")
        self.attribution = read_table(run_dir / "head_attribution.csv")
        self.paths = read_table(run_dir / "path_patching.csv")
        self.verdict = json.loads((run_dir / "emergence.json").read_text())
        names = dict.fromkeys(row["heads"] for row in self.patching)
        self.heads = [name for name in names if name != "none" and "+" not in name]
        self.loss = column(self.metrics, "train/repeated_loss")
        self.bend = loss_bend(*self.loss)

    def patched(self, heads: str, quantity: str = "repeated_accuracy") -> Curve:
        """A column of the patching table, for one set of heads."""
        return column([row for row in self.patching if row["heads"] == heads], quantity)

    def attributed(self, head: str) -> Curve:
        """What a head writes to the answer's logit, more than to the donor's answer's."""
        rows = [row for row in self.attribution if f"L{row['layer']}H{row['head']}" == head]
        return column(rows, "mean_logit_diff")

    def table(self) -> str:
        """The last measurement of every head, and of all heads of a layer together, as Markdown."""
        columns = {
            "repeated answer": self.patched,
            "shuffled answer": lambda head: self.patched(head, "shuffled_accuracy"),
            "attribution": self.attributed,
            "prefix-matching": lambda head: column(self.metrics, f"val/prefix_matching/{head}"),
            "previous-token": lambda head: column(self.metrics, f"val/previous_token/{head}"),
        }
        lines = [f"| patched | {' | '.join(columns)} |", "| :--- |" + " ---: |" * len(columns)]
        layers = ("+".join(group) for _, group in groupby(self.heads, key=lambda head: head.partition("H")[0]))
        for heads in [*self.heads, *layers]:
            measured = (values(heads)[1] for values in columns.values())
            lines.append(f"| {heads} | {' | '.join(f'{each[-1]:.2f}' if each else '' for each in measured)} |")
        return "\n".join(lines)

    def costliest_edges(self, n: int = 4) -> str:
        """The single edges whose patching leaves least of the repeated answers at the end."""
        last = [row for row in self.paths if row["step"] == self.paths[-1]["step"]]
        single = [row for row in last if row["edges"] != "none" and "+" not in row["edges"]]
        costliest = sorted(single, key=lambda row: float(row["repeated_accuracy"]))[:n]
        return ", ".join(f"{row['edges']} {float(row['repeated_accuracy']):.2f}" for row in costliest)

    def __str__(self) -> str:
        start, steepest, end = self.bend
        steps, accuracy = self.patched("none")
        return "\n".join(
            [
                f"The loss on the repeated tokens bends from step {start} to {end}, most steeply at {steepest}.",
                self.emergence(),
                f"Step {steps[-1]}, accuracy {accuracy[-1]:.2f} with nothing patched:",
                self.table(),
                f"Repeated answers left when a single edge sees the shuffled run: {self.costliest_edges()}",
            ]
        )

    def emergence(self) -> str:
        """The verdict in a sentence."""
        if self.verdict["head"] is None:
            return "No head is needed by itself."
        before, at = self.verdict["first_cost_previous_step"], self.verdict["first_cost_step"]
        others = ", ".join(self.verdict["other_heads"]) or "no other head"
        return (
            f"A head is needed from a step between {before} and {at} on; at the end {self.verdict['head']} is needed "
            f"most, and by themselves {others}."
        )

    def figure(self) -> Figure:
        """Loss, patched accuracy and prefix-matching score against the step."""
        figure = Figure(figsize=(8, 7), layout="constrained")
        loss, patched, score = figure.subplots(3, 1, sharex=True)
        loss.plot(*self.loss, color="black", linewidth=1)
        loss.set(ylabel="loss on repeated tokens", ylim=(0, None))
        patched.plot(*self.patched("none"), color="black", linestyle="--", label="nothing patched")
        for index, head in enumerate(self.heads):
            patched.plot(*self.patched(head), color=head_colour(index), label=f"{head} patched")
            score.plot(*column(self.metrics, f"val/prefix_matching/{head}"), color=head_colour(index), label=head)
        patched.set(ylabel="accuracy", ylim=(-0.03, 1.05))
        score.set(ylabel="prefix-matching score", ylim=(-0.03, 1.05), xlabel="optimizer step")
        for axis in (loss, patched, score):
            first = axis is loss  # one legend is enough for what all three show
            axis.axvspan(self.bend[0], self.bend[2], color="0.88", label="the loss bends" if first else None)
            if (step := self.verdict["first_cost_step"]) is not None:
                label = "a head is needed" if first else None
                axis.axvline(step, color="black", linewidth=0.8, linestyle=":", label=label)
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
        return figure


def main(argv: list[str] | None = None) -> None:
    """Print and draw one run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args(argv)
    try:
        run = Run(args.run_dir)
        print(run)
        run.figure().savefig(args.picture, dpi=110)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
