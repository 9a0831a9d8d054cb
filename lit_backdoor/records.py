"""Tidy tables on disk: one CSV file that grows row by row, whole at every moment, and shortened on resume."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

Value = str | int | float


def read_table(path: Path) -> list[dict[str, str]]:
    """All whole rows of a table, as text; a last line that a kill cut short is left out. Empty without a file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole)))


class Table:
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

    def truncate(self, from_step: int) -> None:
        """Drop every row of ``from_step`` and later."""
        if self.path.exists():
            self.rewrite([row for row in read_table(self.path) if int(row["step"]) < from_step])

    def rewrite(self, rows: Sequence[Mapping[str, Value]], columns: Sequence[str] | None = None) -> None:
        """Replace the whole file at once; a kill leaves the old file or the new one, nothing between."""
        if columns is None:
            columns = list(rows[0]) if rows else []
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(_csv_text(rows, columns, header=True) if columns else "", encoding="utf-8", newline="")
        os.replace(temporary, self.path)
        self._columns = list(columns) or None


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
        Table(destination / path.name).append([row for row in read_table(path) if int(row["step"]) < before_step])
