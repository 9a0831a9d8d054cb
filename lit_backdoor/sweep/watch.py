"""A live table of all runs in a terminal; elsewhere, a line whenever something happens."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lit_backdoor.sweep.scheduler import State, Tracked, Watcher, seconds_left

COLOURS = {State.WAITING: "dim", State.RUNNING: "cyan", State.DONE: "green", State.FAILED: "bold red"}
LINE_EVERY_SECONDS = 60.0


@contextmanager
def watching(jobs: int, console: Console | None = None) -> Iterator[Watcher]:
    """A function that shows the runs, whenever it is called."""
    console = console or Console(file=sys.stderr)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda tracked: live.update(sweep_table(tracked, jobs), refresh=True)
    else:
        yield Lines(console, jobs).show


class Lines:
    """One line for every run whose state changes, and one for the whole every minute."""

    def __init__(self, console: Console, jobs: int) -> None:
        self.console = console
        self.jobs = jobs
        self._told: dict[str, State] = {}
        self._last_line = time.monotonic()

    def show(self, tracked: Sequence[Tracked]) -> None:
        """Tell what is new."""
        for one in tracked:
            if self._told.get(one.run.name, State.WAITING) is not one.state:
                self._told[one.run.name] = one.state
                note = one.message or f"step {one.progress.step} of {one.run.max_steps}{_accuracies(one)}"
                self._print(f"{one.run.name}: {one.state.value}, {note}")
        if time.monotonic() - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._print(sweep_summary(tracked, self.jobs))

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def sweep_table(tracked: Sequence[Tracked], jobs: int) -> Table:
    """All runs: state, step, accuracies, time left."""
    shown = Table(caption=sweep_summary(tracked, jobs), caption_justify="left", box=None, pad_edge=False)
    for column in ("run", "state"):
        shown.add_column(column)
    for column in ("step", "of", "validation accuracy, %", "time left"):
        shown.add_column(column, justify="right")
    for one in tracked:
        left = one.seconds_left if one.state is State.RUNNING else None
        shown.add_row(
            one.run.name,
            f"[{COLOURS[one.state]}]{one.state.value}[/]",
            str(one.progress.step),
            str(one.run.max_steps),
            _accuracies(one).lstrip(", "),
            "" if left is None else duration(left),
        )
    return shown


def sweep_summary(tracked: Sequence[Tracked], jobs: int) -> str:
    """How many runs stand where, and the time left for all."""
    counts = [(state.value, sum(one.state is state for one in tracked)) for state in State]
    left = seconds_left(tracked, jobs)
    shown = ", ".join(f"{count} {name}" for name, count in counts if count)
    return shown + (f"; about {duration(left)} left" if left is not None else "")


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _accuracies(one: Tracked) -> str:
    return "".join(f", {rule} {100 * value:.1f}" for rule, value in one.progress.accuracies.items())
