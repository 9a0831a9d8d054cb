"""Read from its directory how far a run is."""

import csv
import io
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from lit_backdoor.runs.checkpoints import read_checkpoint
from lit_backdoor.runs.file_names import METRICS
from lit_backdoor.sweep.plan import PlannedRun

TAIL_BYTES = 64 * 1024
WINDOW_SECONDS = 300.0


@dataclass(frozen=True)
class Progress:
    """The end of metrics.csv.

    Attributes:
        step: optimizer steps.
        accuracies: validation accuracy by rule, 0..1; empty before the first validation.
    """

    step: int = 0
    accuracies: dict[str, float] = field(default_factory=dict)


def read_progress(run_dir: Path) -> Progress:
    """Read the end of metrics.csv; step 0 if there is no such file yet.

    Raises:
        ValueError: the file is not a table of a run.
    """
    try:
        return _read_tail(run_dir / METRICS)
    except OSError:
        return Progress()
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{run_dir / METRICS} is damaged ({type(error).__name__}: {error})") from None


def _read_tail(path: Path) -> Progress:
    with path.open("rb") as file:
        header = file.readline().decode()
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - TAIL_BYTES, len(header)))
        tail = file.read().decode()
    lines = tail[: tail.rfind("\n") + 1].splitlines()
    rows = list(csv.DictReader([header, *lines[1 if size - TAIL_BYTES > len(header) else 0 :]]))
    validated = [row for row in rows if row.get("val/loss")]
    accuracies = {
        name.removeprefix("val/").removesuffix("_accuracy"): float(value)
        for name, value in (validated[-1] if validated else {}).items()
        if name.startswith("val/") and name.endswith("_accuracy") and value
    }
    return Progress(int(rows[-1]["step"]) if rows else 0, accuracies)


def is_done(run: PlannedRun) -> bool:
    """Whether metrics.csv (and last.ckpt, if present) has reached ``max_steps``.

    Raises:
        ValueError: the table or the checkpoint can't be read.
    """
    path = run.last_checkpoint
    if path.exists() and read_checkpoint(path)["global_step"] < run.max_steps:
        return False
    return read_progress(run.run_dir).step >= run.max_steps


class Pace:
    """Optimizer steps per second, over the last minutes.

    Args:
        window: seconds to look back.
    """

    def __init__(self, window: float = WINDOW_SECONDS) -> None:
        self.window = window
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, step: int) -> None:
        """Note the step at a moment. A step that goes back (a run that was continued) starts the measurement again."""
        if self._seen and step < self._seen[-1][1]:
            self._seen.clear()
        if len(self._seen) == 1 and self._seen[0][1] == step:  # a job takes a while to start
            self._seen.clear()
        self._seen.append((now, step))
        while len(self._seen) > 2 and self._seen[0][0] < now - self.window:
            self._seen.popleft()

    @property
    def steps_per_second(self) -> float | None:
        """Steps per second over the window; ``None`` before the first two different steps."""
        if len(self._seen) < 2:
            return None
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start) if last > first and end > start else None
