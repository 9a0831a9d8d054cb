"""Which came first, a head's attention or its cost: python docs/since_when.py REPLAY_DIR... > results/since_when.csv

A row for each folder that `replay --config docs/since_when.yaml` wrote, called as the folder is. A date lies after the
step in `*_after` and not after the one in `*_by`. What came first is said only where the dates lie apart.
"""

import csv
import sys
from pathlib import Path
from typing import Any

from lit_backdoor.functional.moments import came_before, recorded_moment
from lit_backdoor.runs.verdict import read_verdict


def row(folder: Path) -> dict[str, Any]:
    """Both dates of one run, and whether attention was captured before some head was costly."""
    verdict = read_verdict(folder)
    captured, cost = (recorded_moment(verdict, name) for name in ("capture", "first_cost"))
    return {
        "run": folder.name,
        "captured_head": verdict["capture_head"],
        "captured_after": captured.previous_step,
        "captured_by": captured.step,
        "costly_after": cost.previous_step,
        "costly_by": cost.step,
        "captured_before_cost": came_before(captured, cost),
    }


def main() -> None:
    """Print the table."""
    rows = [row(Path(folder)) for folder in sys.argv[1:]]
    if not rows:
        sys.exit("give folders that replay wrote")
    table = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)


if __name__ == "__main__":
    main()
