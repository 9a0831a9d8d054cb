"""The life of a run directory: it is chosen, locked, refused, continued, or branched off."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lit_backdoor.runs.branch import Branch, read_branch
from lit_backdoor.runs.file_names import (
    CHECKPOINT_DIR,
    EVENTS_PREFIX,
    LAST,
    LOCK,
    PREVIOUS,
    STEP_WEIGHTS,
    WEIGHTS_DIR,
    branch_of,
    step_checkpoint,
    step_weights,
)
from lit_backdoor.runs.tables import copy_tables, read_table

PLAIN_NAME = re.compile(r"(?!\.)[\w.+=-]+")


def require_plain_name(option: str, value: str, folders: bool = False) -> None:
    """Make sure that a name that becomes part of a path leads nowhere else.

    Args:
        option: what the value was given for.
        folders: whether it may name folders inside folders, as in ``sweep/seed_0``.

    Raises:
        ValueError: if it is something else than letters, digits, ``_ . + = -``, or starts with a dot.
    """
    if value and not all(PLAIN_NAME.fullmatch(part) for part in (value.split("/") if folders else [value])):
        allowed = "letters, digits and _ . + = -, no dot in front"
        allowed += ", and / between folders" if folders else ""
        raise ValueError(f"{option}: {value!r} is no plain name; allowed: {allowed}")


def has_results(path: Path) -> bool:
    """Whether there is something at ``path`` that a fresh run must not replace.

    A table whose only rows are those of step 0 comes from a run that was killed before its first checkpoint; there is
    nothing in it that would not come back.
    """
    if not path.exists() or path.stat().st_size == 0:
        return False
    if path.suffix == ".csv":
        header = path.read_text(encoding="utf-8").split("\n", 1)[0]
        return "step" not in header.split(",") or any(row["step"] != "0" for row in read_table(path))
    tables = list(path.parent.glob("*.csv"))  # a verdict is worth as much as the tables that it was read from
    return path.suffix != ".json" or not tables or any(has_results(table) for table in tables)


def results_in(run_dir: Path) -> Path | None:
    """A file in a run directory that a fresh run must not replace, if there is one."""
    files = [*sorted((run_dir / CHECKPOINT_DIR).glob("*.ckpt")), *sorted(run_dir.glob("*.csv"))]
    files += [path for path in sorted((run_dir / WEIGHTS_DIR).glob(STEP_WEIGHTS)) if path.name != step_weights(0)]
    return next((path for path in files if has_results(path)), None)


def require_writable(output_dir: Path, option: str = "output_dir") -> None:
    """Make sure that files can be made in ``output_dir``, which need not be there yet.

    Args:
        option: which gave the folder, for errors.

    Raises:
        ValueError: naming the folder that is none, or that nobody may write into.
    """
    there = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{option}: {output_dir} can't be written, {there} is no folder to write into")


def require_new_or_empty(output_dir: Path, option: str = "output_dir") -> None:
    """Make sure that nothing would be overwritten, and that the folder can be made.

    Args:
        option: which gave the folder, for errors.

    Raises:
        ValueError: if there is something at ``output_dir`` already, or it can't be written to.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{option}: {output_dir} exists and is not empty; nothing is overwritten, choose another")
    require_writable(output_dir, option)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make ``directory``, and keep every other process that asks out of it meanwhile.

    The system frees the lock of a process that ends, however it ends, so that nothing stale is left.

    Raises:
        ValueError: in one line, if another process is in it, or it can't be written to.
    """
    lock = FileLock(directory / LOCK, blocking=False)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ValueError(f"{directory} is in use by another process; wait for its end, or use another place") from None
    except OSError as error:
        raise ValueError(f"{directory} can't be written to: {error.strerror}") from None
    except NotImplementedError:  # a network filesystem without locks
        pass
    try:
        yield
    finally:
        lock.release()


def run_of_checkpoint(checkpoint: Path) -> Path | None:
    """The run directory of a checkpoint; ``None`` if it lies in none.

    Where the file is a link, it is the run of what that names; a folder that is a link counts as it is called, since a
    run's checkpoints may be kept on another disk.
    """
    place = checkpoint.absolute()
    while os.path.islink(place) and os.path.isfile(checkpoint):  # a link to itself is no file
        place = place.parent / place.readlink()
    folder = Path(os.path.normpath(place)).parent
    return folder.parent if folder.name == CHECKPOINT_DIR else None


def claim_next_version(runs: Path) -> Path:
    """Make the directory of the next run, ``version_N`` inside ``runs``: two that ask never get the same one.

    Raises:
        ValueError: if no directory can be made there.
    """
    names = [path.name for path in runs.iterdir()] if runs.is_dir() else []
    number = 1 + max((int(name[8:]) for name in names if re.fullmatch(r"version_\d+", name)), default=-1)
    while True:
        run_dir = runs / f"version_{number}"
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ValueError(f"{runs} can't be written to: {error.strerror}") from None
        else:
            return run_dir


@dataclass(frozen=True)
class RunStart:
    """How a run begins: afresh, or from a checkpoint of another one or of its own.

    Args:
        checkpoint: what training continues from; None for a fresh run.
        step: optimizer steps that are done.
        branch: name of the branch that it begins, if it has one.
    """

    checkpoint: Path | None
    step: int = 0
    branch: str | None = None

    @property
    def source(self) -> Path | None:
        """The run directory that the checkpoint is in, if it is in one."""
        return None if self.checkpoint is None else run_of_checkpoint(self.checkpoint)

    @property
    def continues(self) -> bool:
        """Whether the run goes on in the same directory: from its last checkpoint. From any other, it branches off."""
        if self.source is None or self.checkpoint is None or self.branch is not None:
            return False
        return self.checkpoint.name in (LAST, PREVIOUS)

    @property
    def branch_place(self) -> Path | None:
        """Where a branch with a name lives: beside the run that it leaves.

        Raises:
            ValueError: in one line, if the name can't be part of a path, or the checkpoint is in no run.
        """
        if self.branch is None:
            return None
        require_plain_name("branch", self.branch)
        if not self.branch:
            raise ValueError("branch: '' is no name")
        if self.source is None:
            example = Path("RUN_DIR", CHECKPOINT_DIR, step_checkpoint(5000))
            raise ValueError(f"branch: {self.branch} needs a run to leave; give its checkpoint: --ckpt_path {example}")
        return self.source.with_name(branch_of(self.source.name, self.branch))

    @property
    def branch_dir(self) -> Path | None:
        """The same as the directory of a branch that begins.

        Raises:
            ValueError: in one line, as above, or if it is there already; unless this very branch was stopped in it
                before its first checkpoint.
        """
        directory = self.branch_place
        if directory is not None and directory.exists() and not self._was_begun_in(directory):
            raise ValueError(f"branch: {as_typed(directory)} is there already; nothing is overwritten, choose another")
        return directory

    def owns(self, directory: Path) -> bool:
        """Whether a directory that is there holds this branch and nothing else."""
        assert self.source is not None and self.branch is not None
        if not directory.is_dir():
            return False
        own = Branch(self.branch, self.source.name, self.step)
        return {path.name for path in directory.iterdir()} == {LOCK} or read_branch(directory) == own

    def _was_begun_in(self, directory: Path) -> bool:
        return self.owns(directory) and not any((directory / CHECKPOINT_DIR).glob("*.ckpt"))

    def prepare(self, run_dir: Path, own: bool = True) -> None:
        """Make ``run_dir`` ready: a branch gets the history of its source, and nothing is overwritten.

        Args:
            run_dir: where the run will be.
            own: whether it is a directory for this run alone. Without a logger it is the Trainer's root.

        Raises:
            ValueError: in one line, if it holds results of another run, the run would be rewound in it, or a table is
                damaged.
        """
        source = self.source
        for path in sorted(source.glob("*.csv")) if source else ():
            read_table(path)
        if source is not None and source.samefile(run_dir):
            if not self.continues:
                raise ValueError(
                    f"ckpt_path: {self.checkpoint} would rewind {as_typed(run_dir)}, which goes on from {LAST} alone; "
                    "nothing is overwritten, give --branch NAME for a folder beside it"
                )
            let_new_events_sort_last(run_dir)
            return
        begins_again = self.branch is not None and self._was_begun_in(run_dir)
        if own and not begins_again and (result := results_in(run_dir)):
            last = run_dir / CHECKPOINT_DIR / LAST
            how = f"continue it with --ckpt_path {as_typed(last)}" if last.exists() else "nothing is overwritten"
            raise ValueError(
                f"RunLogger.version: {as_typed(result)} is there, from another run; {how}, or choose another"
            )
        if source is not None:
            if self.branch is not None:
                Branch(self.branch, source.name, self.step).write(run_dir)
            copy_tables(source, run_dir, before_step=self.step)


def let_new_events_sort_last(run_dir: Path) -> None:
    """Rename older event files if the clock has been set back since they were made.

    TensorBoard reads a run's event files in the order of the seconds in their names; what is redone must not be read
    before what it replaces.
    """
    latest = int(time.time())
    for path in sorted(run_dir.glob(f"{EVENTS_PREFIX}*"), reverse=True):
        seconds, dot, rest = path.name.removeprefix(EVENTS_PREFIX).partition(".")
        latest = min(latest - 1, int(seconds))
        if latest != int(seconds):
            path.rename(path.with_name(f"{EVENTS_PREFIX}{latest:010d}{dot}{rest}"))


def as_typed(path: Path) -> str:
    """The path as a user would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
