"""Copies what is kept of finished runs: python results/cut.py [--weights] TRAINED_DIR RUN_DIR ...

Each RUN_DIR, as it lies below TRAINED_DIR, goes to the same place below results/: its configuration, its verdict, its
tables with numbers of seven digits, and with --weights its last weights. Checkpoints, event files and other weights
stay behind, and so does the path of the machine. A run that is here already is left as it is.
"""

import argparse
import csv
import re
from pathlib import Path

HERE = Path(__file__).parent


def shorter(value: str) -> str:
    """A cell of a table: a number that is no whole one with seven digits, anything else as it is."""
    return f"{float(value):.7g}" if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?|-?\d+e-?\d+", value) else value


def cut(trained: Path, run: Path, *, weights: bool) -> Path:
    """The new folder of a run.

    Raises:
        FileExistsError: it is there already.
    """
    last = max((run / "checkpoints/weights").glob("step_*.safetensors")).read_bytes() if weights else None
    to = HERE / run.resolve().relative_to(trained.resolve())
    to.mkdir(parents=True)
    for path in sorted(run.glob("*.csv")):
        with path.open(newline="") as old, (to / path.name).open("w", newline="") as new:
            rows = ([shorter(value) for value in row] for row in csv.reader(old))
            csv.writer(new, lineterminator="\n").writerows(rows)
    for path in sorted([*run.glob("*.yaml"), *run.glob("*.json")]):
        text = path.read_text().replace(f"{trained.resolve().parent}/", "")
        (to / path.name).write_text(text)
    if last is not None:
        (to / "weights.safetensors").write_bytes(last)
    return to


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="store_true", help="the last weights too")
    parser.add_argument("trained_dir", type=Path, help="what --output_dir named")
    parser.add_argument("run_dirs", type=Path, nargs="+", help="finished runs below it")
    options = parser.parse_args()
    for run_dir in options.run_dirs:
        try:
            print(cut(options.trained_dir, run_dir, weights=options.weights))
        except FileExistsError as error:
            parser.error(f"{error.filename} is there already")
