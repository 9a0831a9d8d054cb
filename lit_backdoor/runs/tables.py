"""Tidy tables on disk: one CSV file that grows row by row, whole at every moment, and shortened on resume."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path

from lit_backdoor.functional import HeadScores, PatchingResult, head_set_name, parse_head_set
from lit_backdoor.runs.schema import Row, Value, read_results


def read_table(path: Path) -> list[dict[str, str]]:
    """All whole rows of a table, as text; a last line that a kill cut short is left out. Empty without a file.

    Raises:
        ValueError: naming the line, if the file is not such a table.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        rows = list(csv.DictReader(io.StringIO(whole)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table: {error}") from None
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path} is damaged: line {number} does not have the columns of the first line")
    return rows


class CsvTable:
    """A CSV table with a ``step`` column.

    Args:
        path: the file; it is created, with its header, by the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None

    def append(self, rows: Sequence[Mapping[str, Value]]) -> None:
        """Append rows in one write. A column that the file does not have yet is added to all of it."""
        if not rows:
            return
        if self._columns is None and self.path.exists():
            self.rewrite(read_table(self.path))  # also mends a line that a kill cut short
        columns = list(self._columns or [])
        new = [name for row in rows for name in row if name not in columns]
        columns += dict.fromkeys(new)
        if self._columns is None or columns != self._columns:
            self.rewrite([*read_table(self.path), *rows], columns)
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv_text(rows, columns, header=False))

    def truncate(self, from_step: int, since: int = 0) -> int | None:
        """Drop every row of ``from_step`` and later, and those before ``since``; return the last step that is left."""
        rows = [row for row in read_table(self.path) if since <= int(row["step"]) < from_step]
        if self.path.exists():
            self.rewrite(rows)
        return max((int(row["step"]) for row in rows), default=None)

    def rewrite(self, rows: Sequence[Mapping[str, Value]], columns: Sequence[str] | None = None) -> None:
        """Replace the whole file at once."""
        if columns is None:
            columns = list(rows[0]) if rows else []
        replace_file(self.path, _csv_text(rows, columns, header=True) if columns else "")
        self._columns = list(columns) or None


def replace_file(path: Path, content: str | bytes | memoryview) -> None:
    """Write a whole file at once; a kill or a full disk leaves the old one or the new one, nothing between.

    The directory must be there: if somebody removed it under a running run, the run has to end.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if not isinstance(content, str):  # a table comes back from what was written last; a checkpoint does not
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def replace_with_copy(path: Path, source: Path) -> None:
    """Make ``path`` a copy of ``source``, at once."""
    replace_file(path, source.read_bytes())


def _csv_text(rows: Sequence[Mapping[str, Value]], columns: Sequence[str], header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def copy_tables(source: Path, destination: Path, before_step: int) -> None:
    """Copy the tables of one run directory into another, up to ``before_step``: the history of a run that branches."""
    for path in sorted(source.glob("*.csv")):
        table = read_table(path)
        if table and "step" not in table[0]:  # the user's own, which stays where it is
            continue
        rows = [row for row in table if int(row["step"]) < before_step]
        if rows or (destination / path.name).exists():  # a branch that begins again
            CsvTable(destination / path.name).rewrite(rows)


def curves(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[int, float]]:
    """The columns of metrics.csv, each by step, as :func:`lit_backdoor.functional.judge_run` reads them."""
    names = [name for name in (rows[0] if rows else ()) if name != "step"]
    return {name: {int(row["step"]): float(row[name]) for row in rows if row[name]} for name in names}


def rows_by_step(rows: Sequence[Row], probe: str, ablation: str = "resample") -> dict[int, list[Row]]:
    """The rows of head_patching.csv that belong to one probe and ablation, by step.

    Only steps with everything that each probe measures: nothing patched, each head alone, all heads. A run that is
    still going on may just be writing its last step.
    """
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        if row["probe"] == probe and row["ablation"] == ablation:
            by_step.setdefault(int(row["step"]), []).append(row)
    heads = {name for row in rows for name in row["heads"].split("+") if name != "none"}
    wanted = {"none", *heads, head_set_name(parse_head_set(name)[0] for name in heads)}
    return {
        step: measured for step, measured in sorted(by_step.items()) if wanted <= {row["heads"] for row in measured}
    }


def history(rows: Sequence[Row], probe: str) -> list[HeadScores]:
    """The recipient's accuracy by step, from head_patching.csv: unpatched, each head alone, all heads.

    What the model gives on the donor's inputs comes from the probe in which the two names have swapped their roles, if
    there is exactly one: the table does not say which examples a probe has.
    """
    scores, on_donor = [], _on_donor(rows, probe)
    for step, measured in rows_by_step(rows, probe).items():
        accuracy = {result.heads: result.recipient_accuracy for result in read_results(PatchingResult, measured)}
        singles = {heads[0]: value for heads, value in accuracy.items() if len(heads) == 1}
        everything = accuracy[max(accuracy, key=len)]
        scores.append(HeadScores(step, accuracy[()], singles, everything, on_donor.get(step, nan)))
    return scores


def _on_donor(rows: Sequence[Row], probe: str) -> dict[int, float]:
    """How often the donor's inputs give the recipient's answers, by step; empty if no probe says so."""
    roles = {row["probe"]: (row["recipient"], row["donor"]) for row in rows}
    swapped = [name for name, (recipient, donor) in roles.items() if (donor, recipient) == roles[probe]]
    if len(swapped) != 1:
        return {}
    unpatched = [row for row in rows if (row["probe"], row["heads"]) == (swapped[0], "none")]
    steps = [int(row["step"]) for row in unpatched]
    return dict(zip(steps, (each.donor_accuracy for each in read_results(PatchingResult, unpatched)), strict=True))
