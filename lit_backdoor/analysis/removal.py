"""Removing a model's backdoors, as ``analyze --removal`` does, and writing a model without one."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_backdoor.analysis.probed_task import ProbedTask
from lit_backdoor.functional import (
    BackdoorExamples,
    Removal,
    RemovalResult,
    check_removal,
    measure_removal,
    parse_removal,
    plan_removals,
    why_not_in_weights,
    with_changed_weights,
)
from lit_backdoor.runs.checkpoints import StoredModel
from lit_backdoor.runs.directory import require_new_or_empty
from lit_backdoor.runs.file_names import EXPORTED_CONFIG, EXPORTED_WEIGHTS
from lit_backdoor.runs.schema import read_results, result_rows
from lit_backdoor.runs.tables import CsvTable, read_table, replace_file
from lit_backdoor.runs.weights import describe_stored, write_weights

ALL = "all"
"""In place of names: everything that :func:`lit_backdoor.functional.plan_removals` lists."""


def backdoor_examples(task: ProbedTask) -> dict[str, BackdoorExamples]:
    """The examples of each rule beside the first, by its name.

    Raises:
        ValueError: there is no such rule, or nobody knows which examples were trained on.
    """
    if len(task.rules) < 2:
        raise ValueError(f"a model of {task.title} has no backdoor that is known here")
    benign, *others = task.rules
    trained = {name: rule.trained for name, rule in task.rules.items()}
    return {name: BackdoorExamples(task.probes[name], trained[name], trained[benign]) for name in others}


def chosen_removals(names: str, model: Any, examples: Mapping[str, BackdoorExamples]) -> list[Removal]:
    """The removals of these names, joined by commas, or all.

    Raises:
        ValueError: a name is none, or the model can't be changed so.
    """
    probe = next(iter(examples.values())).probe
    chosen = list(dict.fromkeys(parse_removal(name) for name in names.split(","))) if names != ALL else []
    for removal in chosen or [parse_removal("reset:trigger")]:
        check_removal(model, probe, removal)
    return chosen or plan_removals(model, probe)


def measure_removals(
    model: Any,
    examples: Mapping[str, BackdoorExamples],
    removals: Sequence[Removal],
    path: Path,
    step: int | None = None,
    watch: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, list[RemovalResult]]:
    """Measure each removal of each backdoor; by backdoor.

    Args:
        model: with the backdoors.
        examples: of each backdoor, by its name.
        removals: the ways.
        path: the table, which gets a row after each. What is in it already is not measured again.
        step: optimizer steps that made the weights; None if that is not known.
        watch: takes what is to be measured and hands it out again, one after another: ``tqdm``, say.

    Raises:
        ValueError: the table is damaged.
    """
    results, table = _measured(path), CsvTable(path)
    asked = [(name, removal) for name in examples for removal in removals]
    for name, removal in watch([each for each in asked if each not in results]):
        results[name, removal] = measure_removal(model, examples[name], removal)
        table.append(result_rows(step or 0, name, [results[name, removal]]))
    return {name: [results[name, removal] for removal in removals] for name in examples}


def _measured(path: Path) -> dict[tuple[str, Removal], RemovalResult]:
    """What a table holds, by backdoor and removal."""
    rows = read_table(path)
    try:
        results = read_results(RemovalResult, rows)
        return {
            (row["probe"], Removal(each.method, each.target)): each for row, each in zip(rows, results, strict=True)
        }
    except (KeyError, ValueError) as error:
        raise ValueError(f"output_dir: {path} is damaged ({error})") from None


def require_in_weights(model: Any, examples: Mapping[str, BackdoorExamples], removals: Sequence[Removal]) -> None:
    """Make sure that :func:`export` can write a model.

    Raises:
        ValueError: there is not exactly one removal, or it can't be written as weights.
    """
    if len(removals) != 1:
        raise ValueError("give the one removal that is to be written, such as --removal reset:trigger")
    if len(examples) > 1:
        raise ValueError(
            f"the model has {len(examples)} backdoors, and one is removed at a time; allowed: models of one"
        )
    (of_backdoor,), (removal,) = examples.values(), removals
    if reason := why_not_in_weights(model, of_backdoor.probe, removal):
        raise ValueError(f"{removal.name} can't be written as weights: {reason}")


def export(stored: StoredModel, examples: Mapping[str, BackdoorExamples], removal: Removal, folder: Path) -> None:
    """Write the model without its backdoor, for :func:`lit_backdoor.load_pretrained`: weights, and what they are.

    Args:
        stored: the model with it.
        examples: of its one backdoor.
        removal: see :func:`require_in_weights`.
        folder: new or empty.

    Raises:
        ValueError: something is in the folder.
    """
    require_new_or_empty(folder, "export")
    changed = with_changed_weights(stored.model, next(iter(examples.values())), removal)
    description = describe_stored(stored) | {"removal": removal.name}
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / EXPORTED_WEIGHTS, dict(changed.named_parameters()), description)
    replace_file(folder / EXPORTED_CONFIG, json.dumps(description, indent=2) + "\n")
