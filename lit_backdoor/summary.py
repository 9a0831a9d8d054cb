"""What ``fit`` prints at its end, read back from the run directory."""

import os
from pathlib import Path

from lit_backdoor.functional import grokking_step
from lit_backdoor.logger import METRICS_FILE
from lit_backdoor.records import read_table

GROKKED = 0.99
"""Validation accuracy from which a rule counts as grokked, if it stays there."""


def fit_summary(run_dir: Path, seconds: float, probing: float) -> str:
    """Final losses and accuracies, when each rule was grokked, the time it took, and where everything is."""
    rows = read_table(run_dir / METRICS_FILE)
    measured = [row for row in rows if row.get("val/loss")]
    lines = [""]
    if measured:
        last = measured[-1]
        rules = [
            name.split("/")[1].removesuffix("_accuracy") for name in last if name.startswith("val/") and "acc" in name
        ]
        lines.append(
            f"{'step ' + last['step']:<14}{'train':>12}{'validation':>12}   grokked (validation >= {GROKKED} for good)"
        )
        lines.append(f"{'loss':<14}{float(last['train/loss'] or 'nan'):>12.3e}{float(last['val/loss']):>12.3e}")
        for rule in rules:
            train, val = (float(last[f"{stage}/{rule}_accuracy"] or "nan") for stage in ("train", "val"))
            steps = [int(row["step"]) for row in measured]
            accuracies = [float(row[f"val/{rule}_accuracy"]) for row in measured]
            onset = grokking_step(steps, accuracies, GROKKED)
            when = "not yet" if onset.step is None else f"step {onset.step}"
            if onset.previous_step is not None:
                when = f"between steps {onset.previous_step} and {onset.step}"
            lines.append(f"{rule + ' acc.':<14}{train:>12.4f}{val:>12.4f}   {when}")
    shown = os.path.relpath(run_dir)
    lines += [
        f"time          {_duration(seconds)}, of which the probes took {probing / seconds:.1%}",
        f"files         {shown}",
        f"look at it    tensorboard --logdir {shown}",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
