"""What ``fit`` prints at its end, read back from the run directory."""

import json
import os
import shlex
from pathlib import Path

from lit_backdoor.functional import grokking_step
from lit_backdoor.runs.file_names import EMERGENCE, METRICS
from lit_backdoor.runs.tables import read_table

GROKKED = 0.99
"""Validation accuracy from which a rule counts as grokked, if it stays there."""


def fit_summary(run_dir: Path, seconds: float, probing: float) -> str:
    """Final losses and accuracies, when each rule was grokked, the time it took, and where everything is."""
    rows = read_table(run_dir / METRICS)
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
            first = next((at for at, value in zip(steps, accuracies, strict=True) if value >= GROKKED), None)
            if first != onset.step:
                when += f" (first reached at step {first})"
            lines.append(f"{rule + ' acc.':<14}{train:>12.4f}{val:>12.4f}   {when}")
    lines += _verdict(run_dir / EMERGENCE)
    shown = os.path.relpath(run_dir)
    lines += [
        f"time          {_duration(seconds)}, of which the probes took {probing / seconds:.1%}",
        f"files         {shown}",
        f"look at it    tensorboard --logdir {shlex.quote(shown)} --host localhost",
    ]
    return "\n".join(lines)


def _verdict(path: Path) -> list[str]:
    """The backdoor head, from emergence.json."""
    if not path.exists():
        return []
    verdict = json.loads(path.read_text(encoding="utf-8"))
    if verdict["backdoor_head"] is None:
        return ["backdoor head none so far"] if verdict["probe"] else []
    since = verdict["previous_probe_step"], verdict["emergence_step"]
    when = f"from step {since[1]} on" if since[0] is None else f"from a step between {since[0]} and {since[1]} on"
    others = f"; not alone: {', '.join(verdict['other_heads'])}" if verdict["other_heads"] else ""
    share = "" if verdict["concentration"] is None else f", {verdict['concentration']:.0%} of the drop"
    return [f"backdoor head {verdict['backdoor_head']}, {when}{share}{others}"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
