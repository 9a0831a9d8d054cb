"""The checkpoints that docs/what_if.md branches from, its table and figure: python docs/what_if.py parents RUNS_DIR

`parents` prints, for each run below a folder, its last checkpoint and the kept one nearest to its first exclusive step
(the first measured step at which exactly one head is costly). `table BRANCHES_CSV` prints branches.csv of a report, a
row for each checkpoint, and `figure BRANCHES_CSV PNG` draws it.
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lit_backdoor.runs.file_names import BRANCH, CHECKPOINT_DIR, EMERGENCE, LAST, STEP_CHECKPOINTS
from lit_backdoor.runs.verdict import read_verdict
from lit_backdoor.show.style import head_colour

STARTS = {True: "from the final weights", False: "from near the first exclusive step"}


def parents(runs_dir: Path) -> list[Path]:
    """The checkpoints of all runs in a folder; branches are no parents, and of a run without such a step the last
    checkpoint is the only one."""
    found: list[Path] = []
    for run in sorted(path.parent for path in runs_dir.rglob(EMERGENCE)):
        folder = run / CHECKPOINT_DIR
        if (run / BRANCH).exists() or not (folder / LAST).is_file():
            continue
        found.append(folder / LAST)
        step = read_verdict(run)["first_exclusive_step"]
        kept = {int(path.stem.rpartition("_")[2]): path for path in folder.glob(STEP_CHECKPOINTS)}
        if step is not None and kept:
            found.append(kept[min(kept, key=lambda at: abs(at - step))])
    return found


def figure(branches: pd.DataFrame) -> Figure:
    """When each clamped model had the backdoor back: a row per run, a dot per clamped head, an arrow if it had not."""
    clamped = branches.dropna(subset=["clamped_heads", "held_steps"])
    last = clamped["from_step"] == clamped.groupby("run")["from_step"].transform("max")
    runs = list(dict.fromkeys(clamped["run"]))
    heads = sorted(set(clamped["clamped_heads"]))
    drawn = Figure(figsize=(10, 1.3 + 0.33 * len(runs)), layout="constrained")
    axes = drawn.subplots(1, 2, sharey=True, squeeze=False)
    for axis, (is_last, title) in zip(axes[0], STARTS.items(), strict=True):
        for row in clamped[last == is_last].to_dict("records"):
            back, index = row["return_steps"], heads.index(row["clamped_heads"])
            x, marker = (row["held_steps"], ">") if pd.isna(back) else (back, "o")
            y = runs.index(row["run"]) + 0.16 * (index - (len(heads) - 1) / 2)
            axis.plot(x, y, marker, color=head_colour(index), markersize=6)
        axis.set(title=title, xlabel="optimizer steps until 99% under the clamp", yticks=range(len(runs)))
        axis.set(yticklabels=runs, xlim=(-1.5, None))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].invert_yaxis()
    for index, heads_name in enumerate(heads):
        axes[0, 1].plot([], [], "o", color=head_colour(index), label=f"{heads_name} clamped")
    axes[0, 1].plot([], [], ">", color="0.4", label="not back")
    axes[0, 1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def table(branches: pd.DataFrame) -> str:
    """Of each clamped head, when the backdoor was back, and the head that costs most then, as Markdown."""
    clamped = branches.dropna(subset=["clamped_heads", "held_steps"])
    heads = sorted(set(clamped["clamped_heads"]))
    lines = [f"| run | from step | {' | '.join(heads)} |", f"| :--- | ---: |{' :--- |' * len(heads)}"]
    for (run, step), rows in clamped.groupby(["run", "from_step"], sort=False):
        cells = {
            row["clamped_heads"]: ("not back" if pd.isna(row["return_steps"]) else f"{row['return_steps']:.0f}")
            + f", {row['costliest_head']} {row['costliest_cost']:.0%}"
            for row in rows.to_dict("records")
        }
        lines.append(f"| {run} | {step:,} | {' | '.join(cells.get(head, '') for head in heads)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the checkpoints or the table, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("parents").add_argument("runs_dir", type=Path)
    commands.add_parser("table").add_argument("branches", type=Path)
    draw = commands.add_parser("figure")
    draw.add_argument("branches", type=Path)
    draw.add_argument("png", type=Path)
    args = parser.parse_args()
    if args.command == "parents":
        print(*parents(args.runs_dir), sep="\n")
    elif args.command == "table":
        print(table(pd.read_csv(args.branches)))
    else:
        figure(pd.read_csv(args.branches)).savefig(args.png, dpi=130)


if __name__ == "__main__":
    main()
