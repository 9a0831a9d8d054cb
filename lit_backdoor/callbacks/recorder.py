"""Monitors without a Trainer: inside any training loop, and over models that are there already."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Protocol

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from lit_backdoor.callbacks.charts import all_charts
from lit_backdoor.callbacks.history import Metrics
from lit_backdoor.callbacks.monitor import MonitorCallback
from lit_backdoor.callbacks.probing import Probes
from lit_backdoor.callbacks.run import ContractError, RunOutlet, imported
from lit_backdoor.functional.stopping import Stopped
from lit_backdoor.runs.directory import let_new_events_sort_last, locked
from lit_backdoor.runs.file_names import RECORDED, RECORDED_METRICS
from lit_backdoor.runs.tables import CsvTable, read_table, replace_file


class HasProbes(Protocol):
    """A datamodule, or what stands in for one."""

    def probes(self) -> Probes:
        """What to measure on, by name."""


class Recorder:
    """Tells monitors about a model in a plain training loop.

        with Recorder([HeadPatchingMonitor(every_n_steps=100, probes=probes)], "runs/first") as recorder:
            recorder(0, model)
            for step in range(1, 1001):
                ...  # an optimizer step
                recorder(step, model, {"val/copy_accuracy": accuracy})

    Each monitor measures the steps that its schedule names (the next one, where such a step is not recorded), and the
    last one. Tables, the verdict and TensorBoard are those that the monitors write inside a Trainer. The model is left
    as it was. What has been recorded is safe from kills, the metrics too (``recorded_metrics.csv``): go on with
    ``start_step``, from weights of your own.

    Args:
        monitors: HeadPatchingMonitor, HeadAttributionMonitor, EmergenceMonitor, or others of their kind.
        run_dir: Where everything goes; made as the first step is recorded, and locked until :meth:`close`.
        start_step: None for a new run. To go on with one: the step to go on from; what ``run_dir`` has of it and later
            is dropped.
        probes: For monitors that were given none, by name, or a function that returns them; or a datamodule, which is
            asked for all that monitors want.
        loggers: Lightning's; TensorBoard in ``run_dir`` if not given.
    """

    def __init__(
        self,
        monitors: Sequence[MonitorCallback],
        run_dir: str | Path,
        start_step: int | None = None,
        probes: Probes | Callable[[], Probes] | HasProbes | None = None,
        loggers: Sequence[Logger] | None = None,
    ) -> None:
        for monitor in monitors:
            if not isinstance(monitor, MonitorCallback):
                raise ContractError(f"Recorder.monitors: {type(monitor).__name__} measures no weights; leave it out")
        self.monitors = list(monitors)
        self.run_dir = Path(run_dir)
        self.start_step = start_step
        self.metrics: Metrics = {}
        self._metrics_table = CsvTable(self.run_dir / RECORDED_METRICS)
        self._source = _source(probes)
        self._given_loggers = loggers
        self._run: RunOutlet | None = None
        self._latest: tuple[int, Any, list[int]] | None = None
        self._resources = ExitStack()

    def __call__(self, step: int, model: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Record one step. Call it once before the first optimizer step, and after each.

        Args:
            step: optimizer steps done.
            model: the hooked model, as it is after them.
            metrics: measured at this step, for the verdict: ``val/<rule>_accuracy``, ``train/<rule>_accuracy``,
                ``val/loss`` and the like.

        Raises:
            ContractError: at the first step, before anything is written: something is missing, or does not fit.
            ValueError: ``step`` does not ascend, or another process records into ``run_dir``.
        """
        if self._latest is not None and step <= self._latest[0]:
            raise ValueError(f"Recorder: step {step} comes after step {self._latest[0]}; steps ascend")
        if self._run is None:
            self._run = self._begin(model, step)
        given = {name: float(value) for name, value in (metrics or {}).items()}
        for name, value in given.items():
            self.metrics.setdefault(name, {})[step] = value
        self._metrics_table.append([{"step": step, "metric": name, "value": value} for name, value in given.items()])
        self._latest = (step, model, _versions(model))
        with suppress(Stopped):  # by a signal: whoever handles it has been told
            if any([monitor.observe(model, step) for monitor in self.monitors]):  # a list: all are told
                self._save(step)

    def close(self) -> None:
        """End the run: measure the last step, if that has not happened, and say the last word.

        Raises:
            ValueError: the weights have changed since the last call, so that nobody knows what step they are of.
        """
        try:
            if self._run is not None and self._latest is not None:
                step, model, versions = self._latest
                if _versions(model) != versions:
                    raise ValueError(
                        f"Recorder.close: the weights have changed since recorder({step}, model); "
                        "record the last optimizer step too"
                    )
                with suppress(Stopped):
                    for monitor in self.monitors:
                        monitor.observe(model, step, last=True)
                    for monitor in self.monitors:
                        monitor.finish(step)
                    self._save(step)
        finally:
            self._latest = self._run = None
            self._resources.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error, leave what is recorded as it is."""
        if kind is None:
            self.close()
        else:
            self._latest = self._run = None
            self._resources.close()

    def _begin(self, model: Any, first_step: int) -> RunOutlet:
        step = first_step if self.start_step is None else self.start_step
        if first_step < step:
            raise ContractError(f"Recorder.start_step: {step} is after step {first_step}, which is recorded first")
        for monitor in self.monitors:
            monitor.check_model(model, self._source, self.monitors)
        self._resources.enter_context(locked(self.run_dir))
        try:
            run = self._prepared_run(step)
            for monitor in self.monitors:
                monitor.begin(run, step)
        except BaseException:
            self._resources.close()
            raise
        run.show_charts(all_charts(self.monitors))
        self._run = run
        if self.start_step is None:
            self._save(step - 1)  # from here on, what lies in the directory is ours
        return run

    def _prepared_run(self, step: int) -> RunOutlet:
        state = _read_state(self.run_dir)
        if self.start_step is not None:
            self._restore(state)
        elif state is not None:
            raise ContractError(
                f"{self.run_dir} holds what another Recorder has recorded, up to step {state['step']}; nothing is "
                "overwritten: choose another directory, or go on with start_step"
            )
        loggers = self._given_loggers
        if loggers is None:
            let_new_events_sort_last(self.run_dir)
            board = TensorBoardLogger(self.run_dir, name="", version="", default_hp_metric=False, purge_step=step)
            self._resources.callback(board.finalize, "closed")  # makes no event file where none was begun
            loggers = [board]
        run = RunOutlet(self.run_dir, loggers, self.metrics, starts_afresh=self.start_step is None)
        run.refuse_existing(RECORDED_METRICS)
        self._metrics_table.truncate(step)
        for row in read_table(self._metrics_table.path):
            self.metrics.setdefault(row["metric"], {})[int(row["step"])] = float(row["value"])
        return run

    def _restore(self, state: Mapping[str, Any] | None) -> None:
        keys = sorted(monitor.state_key for monitor in self.monitors)
        if state is None or sorted(state["monitors"]) != keys:
            has = "nothing" if state is None else f"what {', '.join(sorted(state['monitors']))} measured"
            raise ContractError(f"{self.run_dir} holds {has}; {', '.join(keys)} can't go on with it")
        for monitor in self.monitors:
            monitor.load_state_dict(state["monitors"][monitor.state_key])

    def _save(self, step: int) -> None:
        assert self._run is not None  # only while it records
        self._run.flush()  # what has been logged must not be lost after it counts as recorded
        monitors = {monitor.state_key: monitor.state_dict() for monitor in self.monitors}
        buffer = io.BytesIO()
        torch.save({"step": step, "monitors": monitors}, buffer)
        replace_file(self.run_dir / RECORDED, buffer.getbuffer())


def replay(
    models: Iterable[tuple[int, Any]],
    monitors: Sequence[MonitorCallback],
    run_dir: str | Path,
    metrics: Mapping[str, Mapping[int, float]] | None = None,
    probes: Probes | Callable[[], Probes] | HasProbes | None = None,
    loggers: Sequence[Logger] | None = None,
) -> None:
    """Measure models that are there already, as if the monitors had been there while they were trained.

    Each monitor measures the steps that its schedule names (``every_n_steps=1``: all of them; the next one, where such
    a step is not there), and the last one. Killed or stopped, the same call goes on where it was.

    Args:
        models: ``(step, model)``, in ascending steps; the same model may come again with other weights in it.
        monitors: as for a :class:`Recorder`.
        run_dir: a new folder, where everything goes; or one that this function has begun.
        metrics: of the run, by name and step, for the verdict; :func:`lit_backdoor.runs.tables.curves` reads them from
            metrics.csv.
        probes: for monitors that were given none.
        loggers: Lightning's; TensorBoard in ``run_dir`` if not given.

    Raises:
        ContractError: before anything is written: something is missing, or does not fit.
        ValueError: another process works in ``run_dir``.
    """
    start = recorded_step(Path(run_dir))
    with Recorder(monitors, run_dir, start, probes, loggers) as recorder:
        for step, model in models:
            if start is None or step >= start:
                for name, values in (metrics or {}).items():
                    recorder.metrics[name] = {at: value for at, value in values.items() if at <= step}
                recorder(step, model)


def recorded_step(run_dir: Path) -> int | None:
    """The last step that a :class:`Recorder` has recorded in a directory; None if there is none.

    It may have been in the middle of its last word, so it is this step to go on with.
    """
    state = _read_state(run_dir)
    return None if state is None else max(int(state["step"]), 0)


def _source(probes: Probes | Callable[[], Probes] | HasProbes | None) -> Any:
    """What monitors ask, as they ask a datamodule."""
    probes = imported("Recorder.probes", probes)
    if probes is None or hasattr(probes, "probes"):
        return probes
    return SimpleNamespace(probes=probes if callable(probes) else lambda: probes)


def _read_state(run_dir: Path) -> Any:
    path = run_dir / RECORDED
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader of archives and pickles may meet in a damaged file
        raise ContractError(f"{path} is damaged ({type(error).__name__}); choose another directory") from None


def _versions(model: Any) -> list[int]:
    """How often each parameter has been changed in place.

    torch has no public name for it; its notes on in-place operations describe the counter, and autograd relies on it.
    """
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return [parameter._version for parameter in parameters if not parameter.is_inference()]
