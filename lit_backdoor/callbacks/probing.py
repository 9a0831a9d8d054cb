"""What the monitors of heads have in common: the contract, the schedule, the table, and leaving no trace."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule

from lit_backdoor.callbacks.clamp import HeadClamp, clamp_to_measure
from lit_backdoor.callbacks.interruption import stopped_by_signals
from lit_backdoor.callbacks.measurement import Measurement, Probes, probes_from, raise_if_unaware_of_precision
from lit_backdoor.callbacks.monitor import MonitorCallback
from lit_backdoor.callbacks.run import ContractError, RunOutlet, find_model, imported
from lit_backdoor.callbacks.schedule import Schedule
from lit_backdoor.functional import HookedModel, Probe, why_no_shortcut
from lit_backdoor.functional.row_threads import one_torch_thread
from lit_backdoor.functional.stopping import Stopped
from lit_backdoor.limits import NonNegativeInt, PositiveInt, within_limits
from lit_backdoor.runs.branch import read_branch
from lit_backdoor.runs.directory import require_plain_name
from lit_backdoor.runs.tables import CsvTable


class ProbeCallback(MonitorCallback):
    """Measures a hooked model's heads on probes while it trains, and changes nothing about the training.

    It needs two things: a hooked model at ``model_attr`` of the LightningModule (see
    :class:`lit_backdoor.functional.HookedModel`), and probes, given here or by ``trainer.datamodule.probes()``.
    Override :meth:`measure` for another measurement, :meth:`is_due` for another schedule. The last step is always
    probed.

    Args:
        every_n_steps: Optimizer steps between two probes, step 0 included. The last step is always probed.
        probes: What to measure on, by name, or a function that returns it (in YAML its import path); null asks the
            datamodule.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
        name: Tells monitors of one class apart, in file names and in TensorBoard.
        dense_until: Optimizer step up to which more steps are probed, equally spaced on a logarithmic scale; see
            :class:`lit_backdoor.callbacks.Schedule`.
        max_examples: Measure no more than so many examples of a probe, drawn at random once; null: all.

    Raises:
        ValueError: ``every_n_steps`` is below 1, or ``name`` can't be part of a file name.
        ContractError: as a fit starts, before its first step: the model or the probes are missing or do not fit each
            other, or a file would be overwritten.
    """

    table_name: str
    """File of the monitor's table, without ``.csv``."""

    @within_limits
    def __init__(
        self,
        every_n_steps: PositiveInt = 100,
        probes: Probes | Callable[[], Probes] | None = None,
        model_attr: str = "model",
        name: str = "",
        dense_until: NonNegativeInt = 0,
        max_examples: PositiveInt | None = None,
    ) -> None:
        self.max_examples = max_examples
        self.schedule = Schedule(every_n_steps, dense_until)
        self.probes: Probes = {}
        """The probes in use, from :meth:`check_model` on."""
        self._given_probes = imported(f"{type(self).__name__}.probes", probes)
        self.model_attr = model_attr
        require_plain_name(f"{type(self).__name__}.name", name)
        self.name = name
        self.clamped = False
        """Whether to measure the model as the Trainer's HeadClamp has it in the next training pass."""
        self._clamp: HeadClamp | None = None
        self.since_step = -1
        """Where a branch begins that is measured clamped, else -1. What its parent measured before does not count."""
        self.seconds = 0.0
        """Time spent probing in this process."""
        self.probed_step = -1
        self._earlier_step = -1
        self._seen_step = -1
        self._table: CsvTable | None = None
        self._probed_last = False
        self._readers: dict[str, Callable[[int], None]] = {}

    @property
    def state_key(self) -> str:
        """Distinct for every monitor of a Trainer."""
        return f"{type(self).__qualname__}[{self.name}]"

    def is_due(self, step: int) -> bool:
        """Whether to probe the weights after ``step`` optimizer steps."""
        return self.schedule.is_due(step)

    def measure(self, model: HookedModel, step: int, last: bool) -> Measurement:
        """Measure.

        Args:
            model: as it is after ``step`` optimizer steps; leave it as you found it.
            step: optimizer steps done.
            last: training ends with this step.
        """
        raise NotImplementedError

    def tell(self, reader: str, read: Callable[[int], None]) -> None:
        """Call ``read(step)`` after every measurement; one function for each ``reader``."""
        self._readers[reader] = read

    def forget(self, from_step: int) -> None:
        """Drop what was measured at ``from_step`` and later: training continues from a checkpoint of that step."""

    def check_model(self, model: HookedModel, datamodule: Any, monitors: Sequence[Any]) -> None:
        """Take the probes, and make sure that they fit the model.

        Raises:
            ContractError: naming what is missing, together with the fix.
        """
        self.check_name(monitors)
        self._readers = {}
        if self.clamped:
            self._clamp = clamp_to_measure(monitors, model, type(self).__name__)
        self.probes = self.probes_of(datamodule)
        if self.max_examples is not None:
            self.probes = {name: probe.sample(self.max_examples) for name, probe in self.probes.items()}
        lengths = sorted({probe.recipient_tokens.shape[1] for probe in self.probes.values()})
        if self._clamp is not None and self._clamp.mode == "mean" and len(lengths) > 1:
            raise ContractError(
                f"{type(self).__name__}.clamped: a mean is one over the recipients of all probes, whose lengths differ "
                f"({', '.join(map(str, lengths))} tokens); give each length a monitor with a name"
            )
        for name, probe in self.probes.items():
            try:
                self.check_probe(model, probe)
            except ValueError as error:
                raise ContractError(f"{type(self).__name__}, probe '{name}': {error}") from None

    def check_name(self, monitors: Sequence[Any]) -> None:
        """Make sure that no other monitor writes into the same table.

        Raises:
            ContractError: if one does.
        """
        twins = [
            monitor
            for monitor in monitors
            if isinstance(monitor, ProbeCallback) and monitor.state_key == self.state_key
        ]
        if len(twins) > 1:
            raise ContractError(
                f"two {type(self).__name__} are both named '{self.name}' and would write into one table; "
                "give each its own name="
            )

    def check_probe(self, model: HookedModel, probe: Probe) -> None:
        """Make sure that ``probe`` can be measured on ``model``.

        Raises:
            ValueError: naming what is in the way.
        """
        probe.check(model)

    def probes_of(self, datamodule: Any) -> Probes:
        """The probes given to the constructor, else the datamodule's.

        Raises:
            ContractError: if there are none, or something else was given.
        """
        return probes_from(self._given_probes, datamodule, type(self).__name__)

    def begin(self, run: RunOutlet, step: int) -> None:
        """Shorten the table to what was measured before ``step``, and clamped in a branch, to what is the branch's own.

        Raises:
            ContractError: if it is another run's.
        """
        super().begin(run, step)
        run.refuse_existing(f"{self.file_stem}.csv")
        self.probed_step = -1
        branch = read_branch(run.directory) if self.clamped and run.directory is not None else None
        self.since_step = -1 if branch is None else branch.step
        self.forget(step)
        self._table = run.table(f"{self.file_stem}.csv")
        earlier = None if self._table is None else self._table.truncate(step, self.since_step)
        self._earlier_step = -1 if earlier is None else earlier
        self._seen_step = step - 1 if earlier is None else earlier

    def observe(self, model: HookedModel, step: int, last: bool = False) -> bool:
        """Measure if it is due: once for every step, and the last step once more if it was not known to be the last.

        Where steps that are due were passed over, this one is measured in their place.

        Raises:
            Stopped: a signal asks to stop; nothing is measured, and the next step is due.
        """
        measured = step == self.probed_step and (self._probed_last or not last)
        begins = step == self.since_step
        due = not measured and (last or begins or any(map(self.is_due, range(self._seen_step + 1, step + 1))))
        if due:
            self._run(model, step, last)
        self._seen_step = step
        return due

    @property
    def picture_every_n_steps(self) -> int:
        """Optimizer steps until the first picture of a run."""
        return self.schedule.every_n_steps

    def draws(self, step: int, last: bool) -> bool:
        """Whether this measurement makes pictures: the last does, and on the way those of 1, 2, 4, 8, ... times
        :attr:`picture_every_n_steps`, so that a run of any length has few."""
        now, before = (each // self.picture_every_n_steps for each in (step, max(self._earlier_step, 0)))
        return last or now.bit_length() > before.bit_length()

    def has_come(self, every_n_steps: int, step: int) -> bool:
        """Whether a multiple of ``every_n_steps`` has come since the measurement before that of ``step``."""
        return step // every_n_steps > self._earlier_step // every_n_steps

    def _run(self, model: HookedModel, step: int, last: bool) -> None:
        assert self.run is not None  # from `begin` on
        start = time.perf_counter()
        self.probes = {name: probe.to(model.W_U.device) for name, probe in self.probes.items()}
        try:
            with self.run.measuring(), stopped_by_signals(), self._as_clamped(model, step), _threads(model):
                results = self.measure(model, step, last)
        except Stopped:
            self.forget(step)
            raise
        except RuntimeError as error:
            raise_if_unaware_of_precision(model, error, type(self).__name__)
            raise
        if self._table is not None:
            if step == self.probed_step:
                self._table.truncate(step)
            self._table.append(results.rows if self._clamp is None else self._clamp.labelled(results.rows, step))
        self.run.log_numbers({f"{self.prefix}{tag}": value for tag, value in results.numbers.items()}, step)
        for tag, figure in results.figures.items():
            self.run.show_figure(tag, figure, step)
        for tag, text in results.texts.items():
            self.run.show_text(tag, text, step)
        self.probed_step = self._earlier_step = step
        self._probed_last = last
        for read in self._readers.values():
            read(step)
        self.seconds += time.perf_counter() - start

    def _as_clamped(self, model: HookedModel, step: int) -> AbstractContextManager[Any]:
        """The clamp, if it is asked for; a mean is then one over the recipients of all probes."""
        if self._clamp is None:
            return nullcontext()
        tokens = [probe.recipient_tokens for probe in self.probes.values()]
        return self._clamp.active(model, step, torch.cat(tokens) if self._clamp.mode == "mean" else None)

    def model_of(self, module: LightningModule) -> HookedModel:
        """The hooked model, at ``model_attr``.

        Raises:
            ContractError: if there is nothing.
        """
        model: HookedModel = find_model(module, self.model_attr, type(self).__name__)
        return model

    @property
    def prefix(self) -> str:
        """What the monitor's tags in TensorBoard begin with: its name, where it has one."""
        return f"{self.name}_" if self.name else ""

    @property
    def file_stem(self) -> str:
        """The table's file name, without ending: with the monitor's name, where it has one."""
        return f"{self.table_name}_{self.name}" if self.name else self.table_name


def _threads(model: HookedModel) -> AbstractContextManager[None]:
    """PyTorch's threads while ``model`` is measured: its own where it is run whole, which can't be cut into blocks."""
    return one_torch_thread() if why_no_shortcut(model) is None else nullcontext()
