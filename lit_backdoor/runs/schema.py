"""From the dataclasses of `lit_backdoor.functional.results` to the columns of tables, and back.

Most fields are a column of their own name. The others:

- a `Head` is two columns, `layer` and `head`;
- a set of heads, edges or frequencies is text, `L0H0+L0H2`, `trigger>L0H2.Q+L0H2>mlp`, `3+14`;
- `recipient_accuracy` and `donor_accuracy` bear the names of recipient and donor: `backdoor_accuracy`;
- `extra` is a column for each of the probe's own metrics.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

from lit_backdoor.functional import (
    EdgeSet,
    Head,
    HeadAttribution,
    HeadProgress,
    HeadSet,
    HeadSpecificity,
    NeuronCounts,
    PatchingResult,
    PathPatchingResult,
    PositionAttention,
    RemovalResult,
    edge_set_name,
    head_set_name,
    parse_edge_set,
    parse_head_set,
)
from lit_backdoor.functional.results import Frequencies
from lit_backdoor.runs.file_names import (
    ATTENTION,
    HEAD_ATTRIBUTION,
    HEAD_PATCHING,
    HEAD_SPECIFICITY,
    LOSS_SPIKES,
    METRICS,
    NEURONS,
    PATH_PATCHING,
    PROGRESS_MEASURES,
    REMOVAL,
)

Value = str | int | float
Row = Mapping[str, str]
Result = TypeVar("Result")


def frequencies_name(frequencies: Frequencies) -> str:
    """Whole numbers to `"none"` or `"3+14"`, ascending."""
    return "+".join(map(str, sorted(set(frequencies)))) or "none"


def parse_frequencies(name: str) -> Frequencies:
    """The way back; ValueError if `name` is none."""
    return () if name == "none" else tuple(sorted({int(number) for number in name.split("+")}))


SETS: Mapping[Any, tuple[Callable[[Any], str], Callable[[str], Any], str]] = {
    HeadSet: (head_set_name, parse_head_set, "heads, such as L0H0+L0H2, or none"),
    EdgeSet: (edge_set_name, parse_edge_set, "edges, such as trigger>L0H2.Q+L0H2>mlp, or none"),
    Frequencies: (frequencies_name, parse_frequencies, "whole numbers, such as 3+14, or none"),
}
"""How a set is written and read, and what may be written."""

NAMED_BY_RUN = {"recipient_accuracy": "recipient", "donor_accuracy": "donor"}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as in the file's first line; for `recipient_accuracy` and `donor_accuracy` the field's name.
        kind: `int`, `float`, `str`, or one of `SETS`.
        share: whether its numbers lie in 0..1.
        nan: whether a number may be NaN.
        blank: whether a cell may be empty.
        later: whether tables of older versions lack it.
    """

    name: str
    kind: Any
    share: bool = False
    nan: bool = False
    blank: bool = False
    later: bool = False

    @property
    def allowed(self) -> str:
        """What may stand in this column, in words."""
        if self.kind in SETS:
            return SETS[self.kind][2]
        numbers = "a share, 0 to 1" if self.share else "a finite number"
        return {int: "a whole number", str: "text"}.get(self.kind, numbers)

    def accepts(self, text: str) -> bool:
        """Whether `text` can stand in this column."""
        if text == "":
            return self.blank
        if self.kind in SETS:
            return _is_set(self.kind, text)
        if self.kind is int:
            return re.fullmatch(r"\d{1,12}", text) is not None
        if self.kind is str:
            return True
        try:
            value = float(text)
        except ValueError:
            return False
        return (math.isnan(value) and self.nan) or (math.isfinite(value) and (not self.share or 0 <= value <= 1))


@cache
def columns(result: type) -> tuple[Column, ...]:
    """The columns of a table of such results, in order, without the probe's own metrics."""
    hints = get_type_hints(result)
    found = [Column("step", int), Column("probe", str)]
    for field in fields(result):
        kind = hints[field.name]
        if field.name == "extra":
            continue
        if kind is Head:
            found += [Column("layer", int), Column("head", int)]
            continue
        blank = type(None) in get_args(kind)
        plain = next(option for option in get_args(kind) if option is not type(None)) if blank else kind
        known = plain if plain in (int, float, *SETS) else str
        share, nan = field.metadata.get("share", False), field.metadata.get("nan", False)
        found.append(Column(field.name, known, share, nan, blank))
    return tuple(found)


def result_rows(step: int, probe: str, results: Sequence[Any]) -> list[dict[str, Value]]:
    """The rows of a table for the results of one probe at one step."""
    return [{"step": step, "probe": probe, **_cells(result)} for result in results]


def read_results(kind: type[Result], rows: Sequence[Row]) -> list[Result]:
    """The results that `result_rows` wrote as `rows`, without the probes' own metrics."""
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.name != "extra"]  # type: ignore[arg-type]
    return [kind(**{name: _read_cell(name, hints[name], row) for name in names}) for row in rows]


def column_name(name: str, row: Mapping[str, Any]) -> str:
    """The column of a field in a row: `recipient_accuracy` bears the recipient's name."""
    return f"{row[NAMED_BY_RUN[name]]}_accuracy" if name in NAMED_BY_RUN else name


def _cells(result: Any) -> dict[str, Value]:
    cells: dict[str, Value] = {}
    hints = get_type_hints(type(result))
    for field in fields(result):
        value = getattr(result, field.name)
        if isinstance(value, Head):
            cells |= {"layer": value.layer, "head": value.head}
        elif field.name == "extra":
            cells |= value
        elif field.name in NAMED_BY_RUN:
            cells[f"{getattr(result, NAMED_BY_RUN[field.name])}_accuracy"] = value
        elif hints[field.name] in SETS:
            cells[field.name] = SETS[hints[field.name]][0](value)
        else:
            cells[field.name] = "" if value is None else value
    return cells


def _read_cell(name: str, kind: Any, row: Row) -> Any:
    if kind is Head:
        return Head(int(row["layer"]), int(row["head"]))
    text = row[column_name(name, row)]
    if kind in SETS:
        return SETS[kind][1](text)
    if type(None) in get_args(kind):
        kind = None if text == "" else next(option for option in get_args(kind) if option is not type(None))
    return None if kind is None else kind(text) if kind in (int, float) else text


def _is_set(kind: Any, text: str) -> bool:
    write, read, _ = SETS[kind]
    try:
        return write(read(text)) == text
    except ValueError:
        return False


TABLES: Mapping[str, tuple[Column, ...]] = {
    METRICS: (Column("step", int), Column("train/loss", float, blank=True), Column("val/loss", float, blank=True)),
    HEAD_ATTRIBUTION: columns(HeadAttribution),
    HEAD_PATCHING: columns(PatchingResult),
    PATH_PATCHING: columns(PathPatchingResult),
    ATTENTION: columns(PositionAttention),
    HEAD_SPECIFICITY: columns(HeadSpecificity),
    NEURONS: columns(NeuronCounts),
    PROGRESS_MEASURES: columns(HeadProgress),
    REMOVAL: columns(RemovalResult),
    LOSS_SPIKES: (
        Column("step", int),
        Column("peak_step", int),
        Column("end_step", int, blank=True),
        Column("prominence", float, later=True),
        Column("base_loss", float, nan=True),
        Column("peak_loss", float),
    ),
}
"""The columns of every table in a run directory that have a fixed name. Accuracies, named after rules, follow."""
