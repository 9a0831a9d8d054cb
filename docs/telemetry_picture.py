"""Draw what attention entropy says of each head beside what patching says: python docs/telemetry_picture.py RUN_DIR PNG

Prints entropy and cost of every head at every tenth step that was probed, and over all heads and steps the rank
correlation of the two.
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lit_backdoor import read_run
from lit_backdoor.show.style import figure_bytes, head_colour, new_figure


def main() -> None:
    """Read one run's attention.csv and head_patching.csv, draw both, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    both = entropy_and_cost(read_run(args.run_dir))
    args.picture.write_bytes(figure_bytes(telemetry_figure(both), ("png",))["png"])
    print(both.pivot(index="step", columns="heads")[::10].to_string(float_format="{:.2f}".format))
    print(f"rank correlation of entropy and cost: {both['entropy'].corr(both['cost'], method='spearman'):.2f}")


def entropy_and_cost(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The entropy of each head's attention, nats, and what patching it alone costs the backdoor, by step and head."""
    attention, patching = (tables[name].query("probe == 'backdoor'") for name in ("attention", "head_patching"))
    entropy = attention[attention["position"] == 0]
    entropy = entropy.assign(heads="L" + entropy["layer"].astype(str) + "H" + entropy["head"].astype(str))
    left = patching.pivot(index="step", columns="heads", values="backdoor_accuracy")
    cost = left.rsub(left["none"], axis=0).stack().rename("cost").reset_index()
    return entropy[["step", "heads", "entropy"]].merge(cost, on=["step", "heads"])


def telemetry_figure(both: pd.DataFrame) -> Figure:
    """Entropy and cost against the step, a line per head."""
    figure = new_figure(8, 4.8)
    axes = figure.subplots(2, 1, sharex=True)
    for index, (head, rows) in enumerate(both.groupby("heads")):
        for axis, column in zip(axes, ("entropy", "cost"), strict=True):
            axis.plot(rows["step"], rows[column], color=head_colour(index), label=head if axis is axes[0] else None)
    axes[0].set(ylabel="attention entropy, nats", title="what telemetry sees")
    axes[1].set(ylabel="backdoor accuracy lost", xlabel="optimizer step", title="what patching the head alone costs")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    return figure


if __name__ == "__main__":
    main()
