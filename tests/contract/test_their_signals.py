"""A signal during a long probe: it stops, whoever handles the signal goes on, and so does the run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_backdoor.callbacks import (
    EmergenceMonitor,
    HeadAttributionMonitor,
    HeadPatchingMonitor,
    Recorder,
    RunCheckpoint,
    TrainingInterrupted,
)
from lit_backdoor.functional.hooked_model import carries_hooks
from tests.helpers.both_kinds import make_model
from tests.helpers.copy_task import SHAPE, CopyModule, OneBatch, copy_probes

from .conftest import Fit, Rows
from .test_their_trainers import WHERE, steps_of


def slow_from(monitor: HeadPatchingMonitor, at: int) -> HeadPatchingMonitor:
    """The measurement of step `at` has no end; half a second after it has begun, SIGTERM comes."""
    measure = monitor.measure

    def slow(model: Any, step: int, last: bool) -> Any:
        if step == at:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
        while True:
            measured = measure(model, step, last)
            if step != at:
                return measured

    monitor.measure = slow  # type: ignore[method-assign]
    return monitor


@pytest.fixture
def alarm() -> Iterator[None]:
    """When the timer is up, this process gets a SIGTERM."""
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("at", [4, 8])
def test_a_signal_stops_a_long_probe_and_the_run_can_go_on(fit: Fit, rows: Rows, tmp_path: Path, at: int) -> None:
    def watch() -> list[Any]:
        others = [HeadAttributionMonitor(every_n_steps=4, **WHERE), EmergenceMonitor("copy"), RunCheckpoint(3)]
        return [HeadPatchingMonitor(every_n_steps=4, **WHERE), *others]

    options = {"max_steps": 8, "enable_checkpointing": True, "datamodule": OneBatch(), "log_every_n_steps": 1}
    fit(*watch(), **options, default_root_dir=tmp_path / "undisturbed")
    patching, *others = watch()
    start = time.monotonic()
    with pytest.raises(TrainingInterrupted) as stop:
        fit(slow_from(patching, at), *others, **options)
    assert time.monotonic() - start < 5
    assert stop.value.signal_number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    for table in ("head_patching.csv", "head_attribution.csv"):
        assert steps_of(rows(table)) == [step for step in (0, 4) if step < at]
    fit(*watch(), **options, ckpt_path=stop.value.checkpoint)
    for name in ("head_patching.csv", "head_attribution.csv", "emergence.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name


@pytest.mark.usefixtures("alarm")
def test_lightning_stops_a_fit_whose_probe_is_long(fit: Fit, rows: Rows) -> None:
    """Without a RunCheckpoint, its own handler of SIGTERM takes a note, and ends the fit after the batch."""
    module, start = CopyModule(), time.monotonic()
    with pytest.raises(SIGTERMException):
        watch = slow_from(HeadPatchingMonitor(every_n_steps=4, **WHERE), 4), HeadAttributionMonitor(2, **WHERE)
        fit(*watch, module=module)
    assert time.monotonic() - start < 5
    assert steps_of(rows("head_patching.csv")) == [0] and steps_of(rows("head_attribution.csv")) == [0, 2]
    assert module.parts["net"].training and not carries_hooks(module.parts["net"])


@pytest.mark.usefixtures("alarm")
def test_where_a_handler_only_takes_a_note_the_next_step_is_measured(rows: Rows, tmp_path: Path) -> None:
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        patching = slow_from(HeadPatchingMonitor(every_n_steps=4, probes=copy_probes(32)), 4)
        with Recorder([patching, HeadAttributionMonitor(2, copy_probes(32))], tmp_path) as recorder:
            for step in range(7):
                recorder(step, make_model("TransformerBridge", **SHAPE))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert noted == [signal.SIGTERM]
    assert steps_of(rows("head_patching.csv")) == [0, 5, 6]
    assert steps_of(rows("head_attribution.csv")) == [0, 2, 5, 6]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("again", "saved_step"), [(signal.SIGTERM, 3), (signal.SIGINT, 0)])
def test_only_ctrl_c_again_stops_without_saving(fit: Fit, first: int, again: int, saved_step: int) -> None:
    class TwoSignals(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 2:
                os.kill(os.getpid(), first)
                os.kill(os.getpid(), again)

    with pytest.raises(TrainingInterrupted) as stop:
        fit(TwoSignals(), RunCheckpoint(100), enable_checkpointing=True)
    assert stop.value.signal_number == (first if saved_step else again)
    assert stop.value.checkpoint is not None
    assert torch.load(stop.value.checkpoint, weights_only=True)["global_step"] == saved_step
