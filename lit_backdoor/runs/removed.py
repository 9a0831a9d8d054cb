"""What `analyze --removal` leaves in a folder, read back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_backdoor.functional import PatchingResult, RemovalResult, parse_removal
from lit_backdoor.runs.checks import check_columns
from lit_backdoor.runs.file_names import HEAD_PATCHING, REMOVAL
from lit_backdoor.runs.frames import read_frame
from lit_backdoor.runs.reading import naming, removal_dirs
from lit_backdoor.runs.run import Run, last_folders, told_apart
from lit_backdoor.runs.schema import read_results
from lit_backdoor.runs.tables import read_table, rows_by_step


@dataclass(frozen=True)
class RemovedModel:
    """One model whose backdoors were removed.

    Attributes:
        path: the folder.
        name: of the run in which the folder lies, and the folder's; outside of runs, the folder's alone. Where two
            would be called alike, as those of a run and its branch, each says where its folder lies.
        removals: by backdoor.
        patching: all sets of heads that were patched in the model as it is, by backdoor.
    """

    path: Path
    name: str
    removals: Mapping[str, Sequence[RemovalResult]]
    patching: Mapping[str, Sequence[PatchingResult]]


def read_removed(paths: Sequence[Path], runs: Sequence[Run]) -> list[RemovedModel]:
    """All that lie at `paths` and in the folders below them, inside of `runs` too.

    Raises:
        ValueError: in one line, if a table is damaged, missing or empty.
    """
    folders = {folder.resolve(): folder for path in paths for folder in removal_dirs(path)}
    models = []
    for place, name in _names(list(folders), runs).items():
        with naming(folders[place]):
            models.append(_read(folders[place], name))
    return models


def _names(places: Sequence[Path], runs: Sequence[Run]) -> dict[Path, str]:
    names = {}
    for place in places:
        inside = [run.name for run in runs if place.is_relative_to(run.path.resolve())]
        names[place] = f"{inside[0]}: {place.name}" if inside else last_folders(place)
    return told_apart(names)


def _read(folder: Path, name: str) -> RemovedModel:
    for file in (REMOVAL, HEAD_PATCHING):
        check_columns(folder / file, frame := read_frame(folder / file))
        if frame.empty:
            raise ValueError(f"{folder / file} has no rows; analyze --removal has not come so far")
    removals: dict[str, list[RemovalResult]] = {}
    rows = read_table(folder / REMOVAL)
    for row, result in zip(rows, read_results(RemovalResult, rows), strict=True):
        if result.method != "none":
            parse_removal(f"{result.method}:{result.target}")
        removals.setdefault(row["probe"], []).append(result)
    patching = {}
    for backdoor in removals:
        by_step = rows_by_step(read_table(folder / HEAD_PATCHING), backdoor)
        if not by_step:
            raise ValueError(f"{folder / HEAD_PATCHING} has no probe {backdoor[:40]}, which {REMOVAL} is about")
        patching[backdoor] = read_results(PatchingResult, by_step[max(by_step)])
    return RemovedModel(folder, name, removals, patching)
