"""What ``fit`` prints at its end, read back from the run directory."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_backdoor.functional import judge_run
from lit_backdoor.runs.file_names import EMERGENCE, EVENTS_PREFIX, METRICS
from lit_backdoor.runs.tables import curves, read_table


def fit_summary(run_dir: Path, seconds: float, probing: float) -> str:
    """Final losses and accuracies, when each rule was fitted and generalised, the state, the time, and the files."""
    rows = _whole_rows(read_table(run_dir / METRICS))
    measured = [row for row in rows if row.get("val/loss")]
    lines = [""]
    if measured:
        last = measured[-1]
        state = judge_run(curves(rows))
        lines.append(f"{'step ' + last['step']:<14}{'train':>12}{'validation':>12}   {'fitted':>12}{'generalised':>14}")
        lines.append(f"{'loss':<14}{_number(last, 'train/loss', '.3e')}{_number(last, 'val/loss', '.3e')}")
        for rule, moments in state.by_rule.items():
            train, val = (_number(last, f"{stage}/{rule}_accuracy", ".4f") for stage in ("train", "val"))
            steps = ("not yet" if step is None else f"step {step}" for step in vars(moments).values())
            lines.append(f"{rule + ' acc.':<14}{train}{val}   {next(steps):>12}{next(steps):>14}")
        lines.append(f"state         {state.state}")
    lines += _verdict(run_dir / EMERGENCE)
    shown = os.path.relpath(run_dir)
    lines += [
        f"time          {_duration(seconds)}, of which the probes took {probing / seconds:.1%}",
        f"files         {shown}",
    ]
    if any(run_dir.glob(f"{EVENTS_PREFIX}*")):
        lines.append(f"look at it    tensorboard --logdir {shlex.quote(shown)} --host localhost")
    return "\n".join(lines)


def _whole_rows(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """One row for each step: CSVLogger writes training and validation of a step into two."""
    by_step: dict[str, dict[str, str]] = {}
    for row in rows:
        whole = by_step.setdefault(row["step"], {})
        whole.update({name: value for name, value in row.items() if value or name not in whole})
    return list(by_step.values())


def _number(row: Mapping[str, str], name: str, form: str) -> str:
    """A number of the table, twelve columns wide; a dash where it was not measured."""
    value = row.get(name)
    return f"{format(float(value), form) if value else '-':>12}"


def _verdict(path: Path) -> list[str]:
    """Where the behaviour sits among the heads, from emergence.json."""
    if not path.exists():
        return []
    verdict = json.loads(path.read_text(encoding="utf-8"))
    if verdict["probe"] is None:
        return []
    heads = [head for head in (verdict["head"], *verdict["other_heads"]) if head is not None]
    words = [verdict["word"] or "not shown by the model", *heads]
    if verdict["stable_exclusive_step"] is not None:
        words.append(f"from step {verdict['stable_exclusive_step']} on")
    if verdict["effective_heads"] is not None:
        words.append(f"{verdict['effective_heads']:.1f} effective heads")
    return [f"{verdict['probe']:<14}{', '.join(words)}"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
