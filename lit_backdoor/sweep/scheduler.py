"""Bring every run of a sweep to its end: a few at a time, none twice, and a run that dies takes no other with it."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

from lit_backdoor.runs.tables import replace_file
from lit_backdoor.sweep.engines import Engine
from lit_backdoor.sweep.plan import PlannedRun
from lit_backdoor.sweep.progress import Pace, Progress, is_done, read_progress

POLL_SECONDS = 2.0
LEDGER = "jobs.json"


class State(Enum):
    """The state of a run in a sweep."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Tracked:
    """A run of a sweep and its state.

    Attributes:
        plan: what was planned.
        state: waiting, running, done or failed.
        progress: the last step and accuracies in its tables.
        pace: its optimizer steps per second.
        job_id: its job, while it has one.
        message: why it failed.
    """

    plan: PlannedRun
    state: State = State.WAITING
    progress: Progress = field(default_factory=Progress)
    pace: Pace = field(default_factory=Pace)
    job_id: str | None = None
    message: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run is done; ``None`` while its pace is unknown."""
        speed = self.pace.steps_per_second
        return None if speed is None else (self.plan.max_steps - self.progress.step) / speed


Watcher = Callable[[Sequence[Tracked]], None]


def seconds_left(tracked: Sequence[Tracked], jobs: int) -> float | None:
    """Estimate the seconds until all runs are done, from the pace of the running ones.

    The cost of a step is proportional to the number of rules. Waiting runs are assumed to be as fast as the running
    ones, ``jobs`` at a time. ``None`` while no pace is known.
    """
    running = [run for run in tracked if run.state is State.RUNNING and run.pace.steps_per_second]
    if not running:
        return None
    rates = [(run.pace.steps_per_second or 0.0) * run.plan.n_rules for run in running]
    unfinished = [run for run in tracked if run.state in (State.RUNNING, State.WAITING)]
    work = [(run.plan.max_steps - run.progress.step) * run.plan.n_rules for run in unfinished]
    rate = sum(rates) / len(rates)
    return max(sum(work) / min(jobs, len(unfinished)), max(work)) / rate


def run_all(
    runs: Sequence[PlannedRun], engine: Engine, jobs: int, watch: Watcher, poll_seconds: float = POLL_SECONDS
) -> list[Tracked]:
    """Run what is not done, at most ``jobs`` at a time. Finished runs are left alone.

    Jobs of an earlier sweep that are still alive are adopted, not started twice. On ``KeyboardInterrupt`` (Ctrl-C)
    local runs save and end, then the exception is raised again.
    """
    ledger = engine.folder / LEDGER
    known = known_jobs(engine)
    tracked = [Tracked(plan) for plan in runs]
    alive_before = engine.alive([known[plan.name] for plan in runs if plan.name in known])
    for run in tracked:
        if known.get(run.plan.name) in alive_before:
            run.state, run.job_id = State.RUNNING, known[run.plan.name]
        else:
            _read_state(run)
    try:
        while any(run.state in (State.WAITING, State.RUNNING) for run in tracked):
            running = [run for run in tracked if run.state is State.RUNNING]
            alive = engine.alive([run.job_id for run in running if run.job_id is not None])
            for run in running:
                if run.job_id not in alive:
                    _read_state(run)
                    if run.state is State.WAITING:
                        run.state, run.message = State.FAILED, engine.last_words(str(run.job_id))
            free = jobs - sum(run.state is State.RUNNING for run in tracked)
            for run in [run for run in tracked if run.state is State.WAITING][: max(free, 0)]:
                run.job_id = known[run.plan.name] = engine.submit(run.plan)
                run.state = State.RUNNING
                replace_file(ledger, json.dumps({"engine": engine.name, **known}, indent=1) + "\n")
            _update_progress(tracked)
            watch(tracked)
            if any(run.state in (State.WAITING, State.RUNNING) for run in tracked):
                time.sleep(poll_seconds)
    finally:
        _stop(engine, tracked)
    watch(tracked)
    return tracked


def known_jobs(engine: Engine) -> dict[str, str]:
    """Read the jobs that earlier sweeps submitted to this kind of engine: name of the run to id of the job.

    Raises:
        ValueError: the list is damaged.
    """
    ledger = engine.folder / LEDGER
    if not ledger.exists():
        return {}
    try:
        known = json.loads(ledger.read_text(encoding="utf-8"))
        if not isinstance(known, dict) or not all(isinstance(job_id, str) for job_id in known.values()):
            raise ValueError("no texts by name")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"output_dir: {ledger} is no list of jobs ({error}); remove it once none of the jobs runs any more"
        ) from None
    return known if known.pop("engine", None) == engine.name else {}


def _read_state(run: Tracked) -> None:
    """Read from disk whether the run is done, can't be read (failed), or has to be started (waiting)."""
    try:
        run.state = State.DONE if is_done(run.plan) else State.WAITING
        run.progress = read_progress(run.plan.run_dir)
    except ValueError as error:
        run.state, run.message = State.FAILED, str(error)


def _update_progress(tracked: Sequence[Tracked]) -> None:
    now = time.monotonic()
    for run in tracked:
        if run.state is State.RUNNING:
            with suppress(ValueError):  # reported when the run has ended
                run.progress = read_progress(run.plan.run_dir)
            run.pace.note(now, run.progress.step)


def _stop(engine: Engine, tracked: Sequence[Tracked], patience_seconds: float = 60.0) -> None:
    """Ask running jobs to save and end, if the engine's jobs end with the sweep."""
    ids = [run.job_id for run in tracked if run.state is State.RUNNING and run.job_id is not None]
    if not ids or not engine.own_signals:
        return
    engine.stop(ids)
    deadline = time.monotonic() + patience_seconds
    while engine.alive(ids) and time.monotonic() < deadline:
        time.sleep(0.2)
