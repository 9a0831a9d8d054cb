"""Draw path_patching.csv, of a run or of analyze: python docs/path_pictures.py FOLDER OUTPUT_DIR NAME

Writes NAME_circuit, the edges of the last step, and of a run also NAME_paths, groups of edges over training.
"""

import argparse
from pathlib import Path

from lit_backdoor.functional import PathPatchingResult
from lit_backdoor.runs.file_names import PATH_PATCHING
from lit_backdoor.runs.schema import read_results
from lit_backdoor.runs.tables import read_table
from lit_backdoor.show.circuit import circuit_figure
from lit_backdoor.show.style import figure_bytes
from lit_backdoor.show.training import edge_groups_figure


def main() -> None:
    """Read one table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    rows = [row for row in read_table(args.folder / PATH_PATCHING) if row["probe"] == "backdoor"]
    steps = sorted({int(row["step"]) for row in rows})
    results = {
        step: read_results(PathPatchingResult, [row for row in rows if int(row["step"]) == step]) for step in steps
    }
    figures = {"circuit": circuit_figure(results[steps[-1]], "a, b")}
    if len(steps) > 1:
        groups = {
            step: {
                each.group or "none": (each.recipient_accuracy, each.donor_accuracy)
                for each in of_step
                if each.group or not each.edges
            }
            for step, of_step in results.items()
        }
        figures["paths"] = edge_groups_figure(groups, "backdoor", "benign")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for what, figure in figures.items():
        (args.output_dir / f"{args.name}_{what}.png").write_bytes(figure_bytes(figure, ("png",))["png"])


if __name__ == "__main__":
    main()
