"""Brings every run of a sweep to its end: so many at a time, none twice, and one that dies takes no other with it."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from lit_backdoor.runs.tables import replace_file
from lit_backdoor.sweep.engines import Engine
from lit_backdoor.sweep.plan import PlannedRun
from lit_backdoor.sweep.progress import Pace, Progress, is_done, read_progress

POLL_SECONDS = 2.0
LEDGER = "jobs.json"


class State(Enum):
    """Where a run stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Tracked:
    """A run and what is known of it.

    Attributes:
        run: the run.
        state: where it stands.
        progress: how far it is.
        pace: how fast it is.
        job_id: its job, while it has one.
        message: why it failed.
    """

    run: PlannedRun
    state: State = State.WAITING
    progress: Progress = field(default_factory=Progress)
    pace: Pace = field(default_factory=Pace)
    job_id: str | None = None
    message: str = ""

    @property
    def seconds_left(self) -> float | None:
        """``None`` where nothing is known yet."""
        speed = self.pace.steps_per_second
        return None if speed is None else (self.run.max_steps - self.progress.step) / speed


Watcher = Callable[[Sequence[Tracked]], None]


def seconds_left(tracked: Sequence[Tracked], jobs: int) -> float | None:
    """Time until all is done, from the pace of what runs now; a step costs as much as its task has rules.

    ``None`` until something has moved. What waits is assumed to run as fast as what runs, ``jobs`` at a time.
    """
    running = [one for one in tracked if one.state is State.RUNNING and one.pace.steps_per_second]
    if not running:
        return None
    rates = [(one.pace.steps_per_second or 0.0) * one.run.n_rules for one in running]
    unfinished = [one for one in tracked if one.state in (State.RUNNING, State.WAITING)]
    work = [(one.run.max_steps - one.progress.step) * one.run.n_rules for one in unfinished]
    rate = sum(rates) / len(rates)
    return max(sum(work) / min(jobs, len(unfinished)), max(work)) / rate


def run_all(
    runs: Sequence[PlannedRun], engine: Engine, jobs: int, watch: Watcher, poll_seconds: float = POLL_SECONDS
) -> list[Tracked]:
    """Run what is not done, at most ``jobs`` at a time; finished runs are not touched.

    Jobs of an earlier sweep that are still alive are found again, not started twice. A ``KeyboardInterrupt`` (Ctrl-C)
    makes local runs save and end before it goes on its way.
    """
    ledger = engine.folder / LEDGER
    known = known_jobs(engine.folder)
    tracked = [Tracked(run) for run in runs]
    found = engine.alive([known[run.name] for run in runs if run.name in known])
    for one in tracked:
        if known.get(one.run.name) in found:
            one.state, one.job_id = State.RUNNING, known[one.run.name]
        else:
            _settle(one)
    try:
        while any(one.state in (State.WAITING, State.RUNNING) for one in tracked):
            running = [one for one in tracked if one.state is State.RUNNING]
            alive = engine.alive([one.job_id for one in running if one.job_id is not None])
            for one in running:
                if one.job_id not in alive:
                    _settle(one)
                    if one.state is State.WAITING:
                        one.state, one.message = State.FAILED, engine.last_words(str(one.job_id))
            free = jobs - sum(one.state is State.RUNNING for one in tracked)
            for one in [one for one in tracked if one.state is State.WAITING][: max(free, 0)]:
                one.job_id = known[one.run.name] = engine.submit(one.run)
                one.state = State.RUNNING
                replace_file(ledger, json.dumps({"engine": engine.name, **known}, indent=1) + "\n")
            _look(tracked)
            watch(tracked)
            if any(one.state in (State.WAITING, State.RUNNING) for one in tracked):
                time.sleep(poll_seconds)
    finally:
        _stop(engine, tracked)
    watch(tracked)
    return tracked


def known_jobs(folder: Path) -> dict[str, str]:
    """The jobs that earlier sweeps submitted, by the names of their runs.

    Raises:
        ValueError: if the list is damaged.
    """
    ledger = folder / LEDGER
    if not ledger.exists():
        return {}
    try:
        known = json.loads(ledger.read_text(encoding="utf-8"))
        if not isinstance(known, dict) or not all(isinstance(one, str) for one in known.values()):
            raise ValueError("no texts by name")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"output_dir: {ledger} is no list of jobs ({error}); remove it once none of the jobs runs any more"
        ) from None
    return known


def _settle(one: Tracked) -> None:
    """Done, failed for good (a checkpoint or table that can't be read), or to be started."""
    try:
        one.state = State.DONE if is_done(one.run) else State.WAITING
        one.progress = read_progress(one.run.run_dir)
    except ValueError as error:
        one.state, one.message = State.FAILED, str(error)


def _look(tracked: Sequence[Tracked]) -> None:
    now = time.monotonic()
    for one in tracked:
        if one.state is State.RUNNING:
            with suppress(ValueError):  # it is told of when the run has ended
                one.progress = read_progress(one.run.run_dir)
            one.pace.saw(now, one.progress.step)


def _stop(engine: Engine, tracked: Sequence[Tracked], patience_seconds: float = 60.0) -> None:
    """Let what still runs save and end, where the engine's jobs end with the sweep."""
    ids = [one.job_id for one in tracked if one.state is State.RUNNING and one.job_id is not None]
    if not ids or not engine.own_signals:
        return
    engine.stop(ids)
    deadline = time.monotonic() + patience_seconds
    while engine.alive(ids) and time.monotonic() < deadline:
        time.sleep(0.2)
