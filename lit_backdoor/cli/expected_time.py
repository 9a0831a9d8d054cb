"""How long a reproduction takes on this machine, timed before it starts."""

import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lit_backdoor.datamodule import BackdoorDataModule
from lit_backdoor.functional.last_position_loss import last_position_loss
from lit_backdoor.functional.row_threads import one_torch_thread, row_threads, set_row_threads
from lit_backdoor.functional.token_layout import TokenLayout
from lit_backdoor.module import BackdoorModule
from lit_backdoor.show.wording import plural
from lit_backdoor.sweep import LocalEngine, Part, PlannedRun
from lit_backdoor.sweep.progress import read_progress
from lit_backdoor.sweep.watch import duration

Made = TypeVar("Made", BackdoorDataModule, BackdoorModule)

TIMED_STEPS = 3


def expected_time(planned: Sequence[tuple[Part, Sequence[PlannedRun]]], engine: LocalEngine, jobs: int) -> str:
    """A line for each part, and one for all: optimizer steps to go, and the time that they take.

    A few steps of each part's task and model are timed here and now, on as many threads as a run will have.

    Args:
        planned: the parts and their runs.
        engine: computes them.
        jobs: runs at a time.

    Raises:
        ValueError: the table of a run that has begun can't be read.
    """
    lines, total = [], 0.0
    for part, runs in planned:
        n_runs = part.fitted or len(runs)
        furthest = sorted((read_progress(run.run_dir).step for run in runs), reverse=True)[:n_runs]
        steps = sum(max(runs[0].max_steps - step, 0) for step in furthest)
        seconds = steps * seconds_per_step(runs[0].hparams, engine.threads) / min(jobs, n_runs) if steps else 0.0
        total += seconds
        lines.append(f"{part.name}: {plural(n_runs)}, {steps:,} steps to go, {duration(seconds)}")
    lines.append(
        f"in all {duration(total)} with {plural(jobs)} at a time, as fast as this machine is right now; "
        "starting, probes, validation and runs that do not fit come on top"
    )
    return "\n".join(lines)


def seconds_per_step(hparams: Mapping[str, Any], threads: int) -> float:
    """Time optimizer steps of a task and model: the fastest of a few, in seconds.

    Args:
        hparams: options of the datamodule and the module, by name.
        threads: that work on blocks of rows.
    """
    data, module = _made(BackdoorDataModule, hparams), _made(BackdoorModule, hparams)
    optimizer = module.configure_optimizers()
    examples, layout = data.train_examples, TokenLayout.of(data.train_examples.tokens, module.model)
    seconds = []
    before = row_threads()
    set_row_threads(threads)
    try:
        with one_torch_thread():
            for _ in range(TIMED_STEPS):
                start = time.perf_counter()
                optimizer.zero_grad()
                last_position_loss(module.model, layout, examples.answers)[0].backward()
                optimizer.step()
                seconds.append(time.perf_counter() - start)
    finally:
        set_row_threads(before)
    return min(seconds)


def _made(kind: type[Made], hparams: Mapping[str, Any]) -> Made:
    """One of Lightning's modules, from those options that are its own."""
    return kind(**{name: hparams[name] for name in inspect.signature(kind).parameters if name in hparams})
