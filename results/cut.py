"""Copies what is kept of finished runs: python results/cut.py [--weights] TRAINED_DIR RUN_DIR ...

Each RUN_DIR, as it lies below TRAINED_DIR, goes to the same place below results/: its configuration, its verdict, its
tables with numbers of five digits, and with --weights its last weights. Checkpoints, event files and other weights
stay behind, and so does the path of the machine. A run that is here already is left as it is.
"""

import argparse
import csv
import re
import shutil
from pathlib import Path

HERE = Path(__file__).parent


def shorter(value: str) -> str:
    """A cell of a table: a number that is no whole one with five digits, anything else as it is."""
    return f"{float(value):.5g}" if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?|-?\d+e-?\d+", value) else value


def last_weights(run: Path) -> bytes | None:
    """The file of the last weights that a run kept; None without any."""
    kept = sorted((run / "checkpoints/weights").glob("step_*.safetensors"))
    return kept[-1].read_bytes() if kept else None


def cut(run: Path, to: Path, machine: str, weights: bytes | None) -> None:
    """Copy what is kept of a run to `to`, whole or not at all, without the path `machine`."""
    aside = to.with_name(f".{to.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed copy left
    aside.mkdir(parents=True)
    for path in sorted(run.glob("*.csv")):
        with path.open(newline="") as old, (aside / path.name).open("w", newline="") as new:
            rows = ([shorter(value) for value in row] for row in csv.reader(old))
            csv.writer(new, lineterminator="\n").writerows(rows)
    for path in sorted([*run.glob("*.yaml"), *run.glob("*.json")]):
        (aside / path.name).write_text(path.read_text().replace(machine, ""))
    if weights is not None:
        (aside / "weights.safetensors").write_bytes(weights)
    aside.rename(to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="store_true", help="the last weights too")
    parser.add_argument("trained_dir", type=Path, help="what --output_dir named")
    parser.add_argument("run_dirs", type=Path, nargs="+", help="finished runs below it")
    options = parser.parse_args()
    trained, plan = options.trained_dir.resolve(), []
    for run in options.run_dirs:
        if not run.resolve().is_relative_to(trained) or not (run / "config.yaml").is_file():
            parser.error(f"run_dirs: {run} is no run below {options.trained_dir}")
        weights = last_weights(run) if options.weights else None
        if options.weights and weights is None:
            parser.error(f"--weights: {run} kept none")
        plan.append((run, HERE / run.resolve().relative_to(trained), weights))
    for run, to, weights in plan:
        if to.exists():
            print(f"{to} is there already")
            continue
        cut(run, to, f"{trained.parent}/", weights)
        print(to)


if __name__ == "__main__":
    main()
