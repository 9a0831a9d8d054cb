"""The tables of a run as pandas data frames, each column with the type that `schema` gives it."""

import csv
import math
from pathlib import Path

import pandas as pd

from lit_backdoor.runs.file_names import METRICS
from lit_backdoor.runs.schema import NAMED_BY_RUN, TABLES, Column
from lit_backdoor.runs.tables import read_table


def read_run(run_dir: str | Path) -> dict[str, pd.DataFrame]:
    """Read every table of a run.

    Whole numbers are `int64` (`Int64` where a cell is blank), other numbers `float64` with NaN for blank cells, sets of
    heads or edges text such as `L0H0+L0H2`. A run that is still going on can be read; a line that is just being written
    is left out.

    Args:
        run_dir: the directory, for example `lightning_logs/version_0`.

    Returns:
        By the name of the file without `.csv`: `metrics`, `head_attribution`, `head_patching`, ...

    Raises:
        ValueError: it is no directory, has no table, or a cell is not what its column holds.
    """
    paths = sorted(Path(run_dir).glob("*.csv"))
    if not paths:
        raise ValueError(f"{run_dir} has no table of a run: give a directory that fit has written, with {METRICS}.")
    return {path.stem: read_frame(path) for path in paths}


def read_frame(path: Path) -> pd.DataFrame:
    """Read one table; see `read_run`. Columns that the file lacks are missing, and so are its rows without a file."""
    rows = read_table(path)
    frame = pd.DataFrame(rows, columns=list(rows[0]) if rows else _header(path), dtype=str)
    known = {column.name: column for column in _columns(path)}
    for name in frame:
        column = known.get(name) or _column_by_name(name)
        frame[name] = _typed(path, frame[name], column) if column else _guessed(frame[name])
    return frame


def missing_columns(path: Path, frame: pd.DataFrame) -> list[str]:
    """The columns that a table of this name has today, and had in older versions, and that `frame` lacks."""
    needed = [column.name for column in _columns(path) if column.name not in NAMED_BY_RUN and not column.later]
    return [name for name in needed if name not in frame]


def _columns(path: Path) -> tuple[Column, ...]:
    """The columns of a table by its name; a monitor that has a name adds it: `head_patching_rule2.csv`."""
    bases = [name for name in TABLES if f"{path.stem}_".startswith(f"{name.removesuffix('.csv')}_")]
    return TABLES[max(bases, key=len)] if bases else (Column("step", int),)


def _column_by_name(name: str) -> Column | None:
    """An accuracy, whatever rule it is of; None for any other name."""
    if not name.endswith("_accuracy"):
        return None
    return Column(name, float, share=True, nan=name.startswith("lowest_"), blank=True)


def _typed(path: Path, cells: pd.Series, column: Column) -> pd.Series:
    refused = {text for text in cells.unique() if not column.accepts(text)}
    if refused:
        line = next(number for number, text in enumerate(cells, start=2) if text in refused)
        raise ValueError(
            f"{path} is damaged or no file of a run (line {line}, {column.name}: '{cells[line - 2][:40]}' is not "
            f"{column.allowed})"
        )
    if column.kind is int:
        return cells.map(lambda text: int(text) if text else pd.NA).astype("Int64" if "" in set(cells) else "int64")
    return cells.map(_number).astype("float64") if column.kind is float else cells


def _guessed(cells: pd.Series) -> pd.Series:
    """Numbers where all cells are numbers or blank, as a probe's own metrics are; otherwise text."""
    try:
        return cells.map(_number).astype("float64")
    except ValueError:
        return cells


def _number(text: str) -> float:
    """The number as it was written, to the last bit, which pandas' own reader does not promise."""
    return float(text) if text else math.nan


def _header(path: Path) -> list[str]:
    """The columns of a table without rows."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])
