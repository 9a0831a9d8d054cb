"""Show a sweep: a live table in a terminal, elsewhere a line for every change."""

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
    """Give a function that shows the runs each time it is called."""
    console = console or Console(file=sys.stderr)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda tracked: live.update(sweep_table(tracked, jobs), refresh=True)
    else:
        yield Lines(console, jobs).show


class Lines:
    """Print a line for every run whose state changes, and a summary every minute."""

    def __init__(self, console: Console, jobs: int) -> None:
        self.console = console
        self.jobs = jobs
        self._printed: dict[str, State] = {}
        self._last_line = time.monotonic()

    def show(self, tracked: Sequence[Tracked]) -> None:
        """Print what has changed."""
        for run in tracked:
            if self._printed.get(run.plan.name, State.WAITING) is not run.state:
                self._printed[run.plan.name] = run.state
                of = "" if run.state is State.DONE else f" of {run.plan.max_steps}"  # it may have been trained on
                note = run.message or f"step {run.progress.step}{of}{_accuracies(run)}"
                self._print(f"{run.plan.name}: {run.state.value}, {note}")
        if time.monotonic() - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._print(sweep_summary(tracked, self.jobs))

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def sweep_table(tracked: Sequence[Tracked], jobs: int) -> Table:
    """Make a table of all runs: state, step, accuracies, time left."""
    table = Table(caption=sweep_summary(tracked, jobs), caption_justify="left", box=None, pad_edge=False)
    for column in ("run", "state"):
        table.add_column(column)
    for column in ("step", "of", "validation accuracy, %", "time left"):
        table.add_column(column, justify="right")
    for run in tracked:
        left = run.seconds_left if run.state is State.RUNNING else None
        table.add_row(
            run.plan.name,
            f"[{COLOURS[run.state]}]{run.state.value}[/]",
            str(run.progress.step),
            str(run.plan.max_steps),
            _accuracies(run).lstrip(", "),
            "" if left is None else duration(left),
        )
    return table


def sweep_summary(tracked: Sequence[Tracked], jobs: int) -> str:
    """Count the runs in each state, and estimate the time left for all."""
    counts = [(state.value, sum(run.state is state for run in tracked)) for state in State]
    left = seconds_left(tracked, jobs)
    states = ", ".join(f"{count} {name}" for name, count in counts if count)
    return states + (f"; about {duration(left)} left" if left is not None else "")


def duration(seconds: float) -> str:
    """Write a time as ``45 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _accuracies(run: Tracked) -> str:
    return "".join(f", {rule} {100 * value:.1f}" for rule, value in run.progress.accuracies.items())
