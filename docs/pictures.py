"""Draw the README's pictures from a run directory: python docs/pictures.py RUN_DIR OUTPUT_DIR NAME

Writes NAME_training (the paper's Figure 3 for one run) and NAME_emergence (head by step), as PNG and SVG.
"""

import argparse
from pathlib import Path

from lit_backdoor.analysis.files import save_figure
from lit_backdoor.runs.frames import read_frame
from lit_backdoor.runs.tables import history, read_table
from lit_backdoor.runs.verdict import read_verdict
from lit_backdoor.show.training import emergence_figure, training_figure


def main() -> None:
    """Read one run and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    verdict = read_verdict(args.run_dir)
    save_figure(
        training_figure({"": read_frame(args.run_dir / "metrics.csv")}), args.output_dir / f"{args.name}_training"
    )
    scores = history(read_table(args.run_dir / "head_patching.csv"), "backdoor")
    marks = {
        f"{verdict['head']} alone": verdict["stable_exclusive_step"],
        "benign rule generalised": verdict["benign_generalised_step"],
    }
    save_figure(emergence_figure(scores, "backdoor accuracy", marks), args.output_dir / f"{args.name}_emergence")


if __name__ == "__main__":
    main()
