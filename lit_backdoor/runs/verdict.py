"""Reading emergence.json, today's and that of older versions."""

import json
from pathlib import Path
from typing import Any

from lit_backdoor.functional import AttentionShift, PatchingResult, PositionAttention, attention_moved, capture_record
from lit_backdoor.functional.verdict import AllSets, verdict_record
from lit_backdoor.runs.file_names import ATTENTION, EMERGENCE, HEAD_PATCHING, METRICS
from lit_backdoor.runs.schema import Row, read_results
from lit_backdoor.runs.tables import curves, history, read_table, rows_by_step

OLDER_KEY = "backdoor_head"
"""What only the files of older versions hold."""


def read_verdict(run_dir: Path) -> Any:
    """What emergence.json in ``run_dir`` says, as :func:`lit_backdoor.functional.verdict.verdict_record` has it.

    An older file dates the heads without a look at the others. Its verdict is worked out anew from the tables of the
    run, with the probe and the threshold that it names; nothing is written.

    Raises:
        ValueError: the file is no JSON, or an older one whose tables are missing or damaged.
    """
    path = run_dir / EMERGENCE
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(verdict, dict) or OLDER_KEY not in verdict:
        return verdict
    return verdict_anew(run_dir, verdict["probe"], verdict["threshold"])


def verdict_anew(run_dir: Path, probe: str | None, threshold: float, min_accuracy: float = 0.5) -> dict[str, Any]:
    """The verdict from the tables of a run, as `read_verdict` gives it.

    Args:
        run_dir: holds metrics.csv and head_patching.csv.
        probe: whose heads it is about; None for the state of the run alone.
        threshold: the cost from which on a head is costly, a share of the accuracy above the floor.
        min_accuracy: the accuracy below which the model does not show the behaviour.

    Raises:
        ValueError: a table is missing or damaged, or has no such probe.
    """
    metrics = curves(read_table(run_dir / METRICS))
    if probe is None:
        return verdict_record(None, [], None, metrics, threshold=threshold) | capture_record([], None)
    rows = read_table(run_dir / HEAD_PATCHING)
    scores = history(rows, probe)
    if not scores:
        raise ValueError(f"{run_dir / HEAD_PATCHING} has no probe {probe}, which {EMERGENCE} is about")
    by_step = {step: read_results(PatchingResult, some) for step, some in rows_by_step(rows, probe).items()}
    complete = [step for step, results in by_step.items() if len(results) == 2 ** len(scores[0].patched)]
    all_sets = None
    if complete:
        all_sets = AllSets(complete[-1], {result.heads: result.recipient_accuracy for result in by_step[complete[-1]]})
    floor = by_step[scores[0].step][0].floor
    anew = verdict_record(probe, scores, all_sets, metrics, floor, threshold, min_accuracy)
    return anew | capture_record(_attention_shifts(run_dir / ATTENTION, probe), anew["first_cost_step"])


def _attention_shifts(path: Path, probe: str) -> list[AttentionShift]:
    """From attention.csv; none where it is not there."""
    by_step: dict[int, list[Row]] = {}
    for row in read_table(path) if path.exists() else ():
        if row["probe"] == probe:
            by_step.setdefault(int(row["step"]), []).append(row)
    return [AttentionShift(step, attention_moved(read_results(PositionAttention, by_step[step]))) for step in by_step]
