"""How far a run is, read from its directory."""

import csv
import io
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from lit_backdoor.logger import METRICS_FILE
from lit_backdoor.runs.checkpoints import read_checkpoint
from lit_backdoor.sweep.plan import PlannedRun

TAIL_BYTES = 64 * 1024
WINDOW_SECONDS = 300.0


@dataclass(frozen=True)
class Progress:
    """What metrics.csv says last.

    Attributes:
        step: optimizer steps.
        accuracies: validation accuracy by rule, 0..1; empty before the first validation.
    """

    step: int = 0
    accuracies: dict[str, float] = field(default_factory=dict)


def read_progress(run_dir: Path) -> Progress:
    """The end of metrics.csv; nothing if there is none yet.

    Raises:
        ValueError: if it is no table of a run.
    """
    try:
        return _read_tail(run_dir / METRICS_FILE)
    except OSError:
        return Progress()
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{run_dir / METRICS_FILE} is damaged ({type(error).__name__}: {error})") from None


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
    """Whether the tables tell of the last step and the last checkpoint, where it has been kept, has reached it.

    Raises:
        ValueError: if there is a checkpoint or a table, but it can't be read.
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

    def saw(self, now: float, step: int) -> None:
        """Note the step at a moment; one that goes back (a run that continues) starts anew."""
        if self._seen and step < self._seen[-1][1]:
            self._seen.clear()
        if len(self._seen) == 1 and self._seen[0][1] == step:  # it has not moved yet: a job takes a while to start
            self._seen.clear()
        self._seen.append((now, step))
        while len(self._seen) > 2 and self._seen[0][0] < now - self.window:
            self._seen.popleft()

    @property
    def steps_per_second(self) -> float | None:
        """``None`` until it has moved."""
        if len(self._seen) < 2:
            return None
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start) if last > first and end > start else None
