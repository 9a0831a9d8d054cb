"""What every column of a run's tables means, from the docstrings: python docs/columns.py > docs/columns.md"""

from dataclasses import fields

from docstring_parser import parse

from lit_backdoor.functional import (
    HeadAttribution,
    HeadProgress,
    HeadSpecificity,
    LossSpike,
    NeuronCounts,
    PatchingResult,
    PathPatchingResult,
    PositionAttention,
    RemovalResult,
)
from lit_backdoor.runs import file_names

RESULTS = {
    file_names.HEAD_ATTRIBUTION: HeadAttribution,
    file_names.HEAD_PATCHING: PatchingResult,
    file_names.PATH_PATCHING: PathPatchingResult,
    file_names.ATTENTION: PositionAttention,
    file_names.HEAD_SPECIFICITY: HeadSpecificity,
    file_names.NEURONS: NeuronCounts,
    file_names.PROGRESS_MEASURES: HeadProgress,
    file_names.LOSS_SPIKES: LossSpike,
    file_names.REMOVAL: RemovalResult,
}

INTRODUCTION = """\
# What the columns mean

These are the tables of a run, in Python the data frames of `lit_backdoor.read_run(RUN_DIR)`. `step` counts the
optimizer steps that were done when a row was measured. `probe` names the inputs. What costs and floors are, and when a
word is used, is in [reading.md](reading.md).

`recipient_accuracy` and `donor_accuracy` bear the names of the two runs in a file. Of the probe `backdoor` the
recipient is the run with the trigger, and its column is `backdoor_accuracy`. Of the probe `benign` the two change
places, so that `backdoor_accuracy` is the donor's. A monitor with `clamped` has one column more, `clamped`: the heads
that the clamp replaces in the training pass after `step` steps, or `none`. An empty cell means that there is no such
number, `nan` that it is undefined: no example was there to average, or what it is a share of is not there, as a rule
that the model has not learned yet, or the model has no such direct way, as a deep one from a head to its MLP.

## metrics.csv

Losses and accuracies of training and validation. A cell is empty where a step was logged and not validated.

| column | what it is |
| :--- | :--- |
| `step` | optimizer steps that were done. |
| `train/loss`, `val/loss` | mean cross-entropy over the examples, nats. |
| `val/RULE_loss` | the same of one rule, such as `benign` or `backdoor`. |
| `train/RULE_accuracy`, `val/RULE_accuracy` | share of one rule's examples that are answered right, 0..1. |
"""

NAMES = {"head": "`layer`, `head`", "start_step": "`step`", "extra": "any other"}
"""Fields that have other columns than one of their name."""

EXTRA = {
    file_names.LOSS_SPIKES: {
        "`lowest_RULE_accuracy`": "lowest validation accuracy of a rule, such as `benign`, from `step` to `end_step`; "
        "NaN if none was measured between them.",
    }
}
"""Columns that no field stands for."""


def meanings(result: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of its fields."""
    described = {
        parameter.arg_name: " ".join((parameter.description or "").split()).replace("|", r"\|")
        for base in reversed(result.__mro__)
        for parameter in parse(base.__doc__ or "").params
    }
    return {field.name: described[field.name] for field in fields(result)}


def page() -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION]
    for name, result in RESULTS.items():
        rows = [f"| {NAMES.get(column, f'`{column}`')} | {what} |" for column, what in meanings(result).items()]
        rows += [f"| {column} | {what} |" for column, what in EXTRA.get(name, {}).items()]
        table = ["| column | what it is |", "| :--- | :--- |", *rows, ""]
        parts.append("\n".join([f"## {name}", "", parse(result.__doc__ or "").short_description or "", "", *table]))
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
