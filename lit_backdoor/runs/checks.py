"""Whether the files of a run hold what is read from them: strangers' folders, and tables edited by hand.

Every function raises `ValueError`, in one line that names the file and what is wrong in it. The cells of the tables are
checked where they are read (`lit_backdoor.runs.frames`). What nobody reads, such as the columns of a probe's
own metrics, is left alone.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from lit_backdoor.functional import Head, head_name, head_set_name, parse_head_set
from lit_backdoor.functional.emergence import Word
from lit_backdoor.functional.run_state import LossOf, State
from lit_backdoor.functional.verdict import verdict_record
from lit_backdoor.model import ACT_FNS
from lit_backdoor.runs.frames import missing_columns
from lit_backdoor.task import Task

HEAD = re.compile(r"L\d{1,3}H\d{1,3}")
COUNTS = ("n_layers", "n_heads", "d_model", "d_mlp")
LARGEST = 10**12


def check_options(path: Path, options: Mapping[str, Any]) -> Task:
    """The task of a run, after a look at its options, which come from hparams.yaml at `path`."""
    moduli, position = options["moduli"], options["trigger_position"]
    for name in COUNTS:
        _require(_is_count(options[name]) and options[name] > 0, path, f"{name} is {options[name]!r}")
    _require(options["act_fn"] in ACT_FNS, path, f"act_fn is {str(options['act_fn'])[:40]!r}")
    _require(isinstance(moduli, list) and all(map(_is_count, moduli)), path, f"moduli is {str(moduli)[:40]}")
    _require(_is_count(position), path, f"trigger_position is {position!r}")
    try:
        return Task.from_options(options)
    except ValueError as error:
        raise ValueError(f"{path} is no description of a run ({error})") from None


def check_columns(path: Path, table: pd.DataFrame) -> None:
    """A table with rows has the columns that every version had."""
    if missing := missing_columns(path, table) if len(table) else []:
        _require(False, path, f"there is no column {missing[0]}")


def check_patching(path: Path, table: pd.DataFrame) -> None:
    """head_patching.csv says nothing twice, and each row has the accuracies of its recipient and its donor."""
    keys = ["step", "probe", "ablation", "heads"]
    again = table.duplicated(keys)
    if again.any():
        line = int(again.argmax())
        said = ", ".join(str(table[key].iloc[line]) for key in keys)[:80]
        _require(False, path, f"line {line + 2} says again what was said of {said}")
    _require((table["n_examples"] > 0).all(), path, "n_examples: '0'")
    for end in ("recipient", "donor"):
        for name, rows in table.groupby(end):
            column = f"{name}_accuracy"
            _require(column in rows and rows[column].notna().all(), path, f"{end}: '{str(name)[:40]}' has no accuracy")


def check_heads(path: Path, task: Task, heads: Sequence[Head], patching: pd.DataFrame, last: pd.DataFrame) -> None:
    """Both tables of probes in the run directory `path` speak of this task's probes and this model's heads.

    Args:
        patching: head_patching.csv.
        last: the rows of head_attribution.csv that are reported, if there are any yet.
    """
    patched, attributed = path / "head_patching.csv", path / "head_attribution.csv"
    for text in patching["heads"].unique():
        _require(set(parse_head_set(text)) <= set(heads), patched, f"heads: '{text[:40]}'")
    probes = set(task.rule_names)
    measured = set(patching.loc[patching["ablation"] == "resample", "probe"])
    _require(probes <= measured, patched, f"there is no probe {', '.join(sorted(probes - measured))} with resample")
    alone = set(patching["heads"]) & {head_set_name([head]) for head in heads}
    _require(len(alone) == len(heads), patched, f"only {len(alone)} of {len(heads)} heads were patched alone")
    if last.empty:
        return
    for probe in sorted(probes):
        rows = last[last["probe"] == probe]
        named = sorted(head_name(*head) for head in zip(rows["layer"], rows["head"], strict=True))
        _require(named == sorted(head_name(*head) for head in heads), attributed, f"probe {probe} lacks heads")
    wrong = last[(last["n_examples"] <= 0) | (last["top_count"] > last["n_examples"])]
    _require(
        wrong.empty, attributed, f"top_count: {wrong['top_count'].tolist()[:1]} of {wrong['n_examples'].tolist()[:1]}"
    )


def check_verdict(path: Path, verdict: Any) -> None:
    """emergence.json holds what EmergenceMonitor writes."""
    _require(isinstance(verdict, dict), path, "it is no mapping")
    for name, value in verdict.items():
        allowed = _ALLOWED.get(name, _optional(_is_count) if name.endswith("_step") else None)
        _require(allowed is None or allowed(value), path, f"{name}: {str(value)[:40]!r}")
    for name in verdict_record(None, [], None, {}):
        _require(name in verdict, path, f"there is no {name}")


def _require(fulfilled: bool, path: Path, what: str) -> None:
    if not fulfilled:
        raise ValueError(f"{path} is damaged or no file of a run ({' '.join(what.split())})")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_head(value: object) -> bool:
    return isinstance(value, str) and HEAD.fullmatch(value) is not None


def _is_change(value: object) -> bool:
    return isinstance(value, dict) and _is_count(value.get("step")) and _is_head(value.get("head"))


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


_ALLOWED: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("threshold", "min_accuracy", "floor"), _is_number),
    **dict.fromkeys(("occupancy", "effective_heads"), _optional(_is_number)),
    "crossings": _is_count,
    "capture_lag": _optional(lambda value: isinstance(value, int)),
    "head": _optional(_is_head),
    "other_heads": lambda heads: isinstance(heads, list) and all(map(_is_head, heads)),
    "leader_changes": lambda changes: isinstance(changes, list) and all(map(_is_change, changes)),
    "word": _optional(lambda value: value in get_args(Word)),
    "state": _optional(lambda value: value in get_args(State)),
    "validation_loss_of": lambda value: value in get_args(LossOf),
}
