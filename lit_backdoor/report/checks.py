"""Whether the files of a run hold what a report reads from them: strangers' folders, and tables edited by hand.

Every function raises ``ValueError``, in one line that names the file and what is wrong in it. What a report does not
read, such as the columns of a probe's own metrics, is left alone.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from lit_backdoor.functional import Head, head_set_name, parse_head_set
from lit_backdoor.functional.emergence import Word
from lit_backdoor.functional.run_state import LossOf, State
from lit_backdoor.functional.verdict import verdict_record
from lit_backdoor.model import ACT_FNS
from lit_backdoor.runs.schema import NAMED_BY_RUN, TABLES, Column, Row
from lit_backdoor.task import Task

HEAD = re.compile(r"L\d{1,3}H\d{1,3}")
COUNTS = ("n_layers", "n_heads", "d_model", "d_mlp")
LARGEST = 10**12
RULES = ("benign", "backdoor")
WORDS = {"word": get_args(Word), "state": get_args(State), "validation_loss_of": get_args(LossOf)}


def load(path: Path) -> Any:
    """What a YAML or JSON file holds."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (UnicodeDecodeError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"run_dirs: {path} is damaged or no file of a run ({' '.join(str(error).split())[:200]})"
        ) from None


def check_options(path: Path, options: Mapping[str, Any]) -> Task:
    """The task of a run, after a look at its options, which come from hparams.yaml at ``path``."""
    moduli, position = options["moduli"], options["trigger_position"]
    for name in COUNTS:
        _require(_is_count(options[name]) and options[name] > 0, path, f"{name} is {options[name]!r}")
    _require(options["act_fn"] in ACT_FNS, path, f"act_fn is {str(options['act_fn'])[:40]!r}")
    _require(isinstance(moduli, list) and all(map(_is_count, moduli)), path, f"moduli is {str(moduli)[:40]}")
    _require(_is_count(position), path, f"trigger_position is {position!r}")
    try:
        return Task.from_options(options)
    except ValueError as error:
        raise ValueError(f"run_dirs: {path} is no description of a run ({error})") from None


def check_table(path: Path, rows: Sequence[Row]) -> None:
    """Every cell that is read is what its column holds; every accuracy lies between 0 and 1, or is blank."""
    if not rows:
        return
    needed = [column for column in TABLES[path.name] if column.name not in NAMED_BY_RUN]
    for column in needed:
        _require(column.name in rows[0] or column.later, path, f"there is no column {column.name}")
    there = [column for column in needed if column.name in rows[0]]
    accuracies = [
        Column(name, float, share=True, nan=name.startswith("lowest_"), blank=True)
        for name in rows[0]
        if name.endswith("_accuracy")
    ]
    for number, row in enumerate(rows, start=2):
        for column in (*there, *accuracies):
            text = row[column.name]
            _require(column.accepts(text), path, f"line {number}, {column.name}: '{text[:40]}' is not {column.allowed}")


def check_probes(path: Path, task: Task, heads: Sequence[Head], patching: Sequence[Row], steps: Sequence[Row]) -> None:
    """Both tables of probes in the run directory ``path`` speak of this task's probes and this model's heads.

    Args:
        patching: rows of head_patching.csv.
        steps: the rows of head_attribution.csv that are reported, if there are any yet.
    """
    patched, attributed = path / "head_patching.csv", path / "head_attribution.csv"
    probes = {"backdoor", "benign"} if len(task.moduli) > 1 else {"benign"}
    seen = set()
    for number, row in enumerate(patching, start=2):
        key = (row["step"], row["probe"], row["ablation"], row["heads"])
        _require(key not in seen, patched, f"line {number} says again what was said of {', '.join(key)[:80]}")
        seen.add(key)
        _require(_is_set_of(row["heads"], heads), patched, f"line {number}, heads: '{row['heads'][:40]}'")
        _require(int(row["n_examples"]) > 0, patched, f"line {number}, n_examples: '0'")
        for role in ("recipient", "donor"):
            _require(bool(row.get(f"{row[role]}_accuracy")), patched, f"line {number}, {role}: '{row[role][:40]}'")
    measured = {key[1] for key in seen if key[2] == "resample"}
    _require(probes <= measured, patched, f"there is no probe {', '.join(sorted(probes - measured))} with resample")
    alone = {row["heads"] for row in patching} & {head_set_name([head]) for head in heads}
    _require(len(alone) == len(heads), patched, f"only {len(alone)} of {len(heads)} heads were patched alone")
    for probe in sorted(probes):
        rows = [row for row in steps if row["probe"] == probe]
        found = sorted((int(row["layer"]), int(row["head"])) for row in rows)
        _require(not steps or found == sorted(heads), attributed, f"probe {probe} lacks heads")
        for row in rows:
            counts = int(row["top_count"]) <= int(row["n_examples"]) > 0
            _require(counts, attributed, f"n_examples: '{row['n_examples']}', top_count: '{row['top_count']}'")


def check_verdict(path: Path, verdict: Any) -> None:
    """emergence.json holds what EmergenceMonitor writes."""
    _require(isinstance(verdict, dict), path, "it is no mapping")
    for name, value in verdict.items():
        place = f"{name}: {str(value)[:40]!r}"
        if name.endswith("_step"):
            _require(value is None or _is_count(value), path, place)
        elif name in ("threshold", "min_accuracy", "floor", "occupancy", "effective_heads"):
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            _require(value is None or number, path, place)
        elif name == "crossings":
            _require(_is_count(value), path, place)
        elif name in WORDS:
            _require(value is None or value in WORDS[name], path, place)
        elif name == "head":
            _require(value is None or _is_head(value), path, place)
        elif name == "other_heads":
            _require(isinstance(value, list) and all(map(_is_head, value)), path, place)
        elif name == "leader_changes":
            _require(isinstance(value, list), path, place)
            for one in value:
                _require(isinstance(one, dict) and _is_count(one.get("step")), path, place)
                _require(_is_head(one.get("head")), path, place)
    for name in verdict_record("backdoor", [], None, {f"val/{rule}_accuracy": {} for rule in RULES}):
        if not name.startswith("backdoor_") or verdict.get("probe") is not None:
            _require(name in verdict, path, f"there is no {name}")


def _require(fulfilled: bool, path: Path, what: str) -> None:
    if not fulfilled:
        told = " ".join(what.split())
        raise ValueError(f"run_dirs: {path} is damaged or no file of a run ({told})")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def _is_head(value: object) -> bool:
    return isinstance(value, str) and HEAD.fullmatch(value) is not None


def _is_set_of(text: str, heads: Sequence[Head]) -> bool:
    found = parse_head_set(text)
    return head_set_name(found) == text and set(found) <= set(heads)
