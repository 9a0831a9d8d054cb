"""What the monitors have in common: the contract, the schedule, the table, and leaving no trace."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_backdoor.callbacks.charts import Charts, lay_out_charts
from lit_backdoor.callbacks.run import ContractError, keeps_files, make_run_dir, refuse_existing, run_dir
from lit_backdoor.functional import HookedModel, Probe, no_shortcut
from lit_backdoor.functional.row_threads import one_torch_thread
from lit_backdoor.limits import PositiveInt, within_limits
from lit_backdoor.runs.directory import require_plain_name
from lit_backdoor.runs.schema import Value
from lit_backdoor.runs.tables import CsvTable

Probes = Mapping[str, Probe]
"""What to measure on, by name; the names appear in tables, file names and TensorBoard."""


class ProbeCallback(Callback):
    """Measures a hooked model's heads on probes while it trains, and changes nothing about the training.

    It needs two things: a hooked model at ``model_attr`` of the LightningModule (see
    :class:`lit_backdoor.functional.HookedModel`), and probes, given here or by ``trainer.datamodule.probes()``.
    Override :meth:`probe` for another measurement, :meth:`is_due` for another schedule; the last step is always probed.

    Args:
        every_n_steps: Optimizer steps between two probes, step 0 included. The last step is always probed.
        probes: What to measure on, by name, or a function that returns it (in YAML its import path); null asks the
            datamodule.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
        name: Tells monitors of one class apart, in file names and in TensorBoard.

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
    ) -> None:
        self.every_n_steps = every_n_steps
        self.probes: Probes = {}
        """The probes in use, from :meth:`check` on."""
        self._given_probes = probes
        self.model_attr = model_attr
        require_plain_name(f"{type(self).__name__}.name", name)
        self.name = name
        self.seconds = 0.0
        """Time spent probing in this process."""
        self._table: CsvTable | None = None
        self.probed_step = -1

    @property
    def state_key(self) -> str:
        """Distinct for every monitor of a Trainer."""
        return f"{type(self).__qualname__}[{self.name}]"

    def is_due(self, step: int) -> bool:
        """Whether to probe the weights after ``step`` optimizer steps."""
        return step % self.every_n_steps == 0

    def probe(self, trainer: Trainer, model: HookedModel, step: int, last: bool) -> list[dict[str, Value]]:
        """Measure, tell the loggers (see :meth:`record`), and return the rows of the table.

        Args:
            trainer: in the middle of a fit.
            model: as it is after ``step`` optimizer steps; leave it as you found it.
            step: optimizer steps done.
            last: training ends with this step.
        """
        raise NotImplementedError

    def custom_scalars(self) -> Charts:
        """The charts of this monitor in TensorBoard's custom scalars."""
        return {}

    def forget(self, from_step: int) -> None:
        """Drop what was measured at ``from_step`` and later: training continues from a checkpoint of that step."""

    def check(self, module: LightningModule, datamodule: Any, callbacks: Sequence[Callback]) -> None:
        """Make sure that everything the monitor needs is there.

        Raises:
            ContractError: naming what is missing, together with the fix.
        """
        twins = [one for one in callbacks if isinstance(one, ProbeCallback) and one.state_key == self.state_key]
        if len(twins) > 1:
            raise ContractError(
                f"two {type(self).__name__} are both named '{self.name}' and would write into one table; "
                "give each its own name="
            )
        model = self._model(module)
        self.probes = self.probes_of(datamodule)
        for name, probe in self.probes.items():
            try:
                self.check_probe(model, probe)
            except ValueError as error:
                raise ContractError(f"{type(self).__name__}, probe '{name}': {error}") from None

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
        source = self._given_probes
        if source is None:
            if not hasattr(datamodule, "probes"):
                raise ContractError(
                    f"{type(self).__name__} has no probes: pass probes={{'name': Probe(...)}}, or a function that "
                    "returns them, or give the datamodule a method probes() that does"
                )
            source = datamodule.probes
        probes = source() if callable(source) else source
        if not isinstance(probes, Mapping) or not all(isinstance(probe, Probe) for probe in probes.values()):
            raise ContractError(f"{type(self).__name__}.probes: {probes!r} is no mapping of names to Probes")
        if not probes:
            raise ContractError(f"{type(self).__name__}.probes: the mapping is empty; give one Probe or more")
        return probes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the contract before training starts.

        Raises:
            ContractError: see :meth:`check`.
        """
        if stage == "fit":
            self.check(pl_module, trainer.datamodule, trainer.callbacks)  # type: ignore[attr-defined]
            make_run_dir(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe step 0, or again the step that training continues from; lay out TensorBoard's charts."""
        refuse_existing(trainer, run_dir(trainer) / f"{self.file_stem}.csv")
        step = trainer.global_step
        self._table = None
        self.probed_step = -1
        self.forget(step)
        if table := self._table_of(trainer):
            table.truncate(step)
        lay_out_charts(trainer, self)
        if self.is_due(step):
            self._run(trainer, pl_module, last=False)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Probe if it is time; only once where several batches make one optimizer step."""
        if trainer.global_step != self.probed_step and self.is_due(trainer.global_step):
            self._run(trainer, pl_module, last=trainer.global_step == trainer.max_steps)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe the last step if that has not happened."""
        if trainer.global_step != self.probed_step or trainer.global_step != trainer.max_steps:
            self._run(trainer, pl_module, last=True)

    def _run(self, trainer: Trainer, module: LightningModule, last: bool) -> None:
        start = time.perf_counter()
        step = trainer.global_step
        self.probes = {name: probe.to(module.device) for name, probe in self.probes.items()}
        model = self._model(module)
        # A pass through the whole model keeps PyTorch's own threads: it can't be cut into blocks of rows.
        with one_torch_thread() if no_shortcut(model) is None else nullcontext():
            rows = self.probe(trainer, model, step, last)
        if table := self._table_of(trainer):
            if step == self.probed_step:
                table.truncate(step)
            table.append(rows)
        self.probed_step = step
        self.seconds += time.perf_counter() - start

    def _model(self, module: LightningModule) -> HookedModel:
        model: Any = module
        for part in self.model_attr.split("."):
            if not hasattr(model, part):
                raise ContractError(
                    f"{type(self).__name__}.model_attr: {type(module).__name__} has no '{self.model_attr}'; "
                    "name the attribute that holds the hooked model"
                )
            model = getattr(model, part)
        return model

    def _table_of(self, trainer: Trainer) -> CsvTable | None:
        if self._table is None and keeps_files(trainer):
            self._table = CsvTable(run_dir(trainer) / f"{self.file_stem}.csv")
        return self._table

    @property
    def prefix(self) -> str:
        """What the monitor's tags in TensorBoard begin with: its name, where it has one."""
        return f"{self.name}_" if self.name else ""

    @property
    def file_stem(self) -> str:
        """The table's file name, without ending: with the monitor's name, where it has one."""
        return f"{self.table_name}_{self.name}" if self.name else self.table_name

    def record(self, trainer: Trainer, numbers: Mapping[str, float], step: int) -> None:
        """Give scalars to every logger, under this step, and to ``trainer.callback_metrics``."""
        named = {f"{self.prefix}{tag}": value for tag, value in numbers.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=step)
        trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in named.items()})
