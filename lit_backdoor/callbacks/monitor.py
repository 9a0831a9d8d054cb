"""What every monitor is: something that is told ``(model, step)`` and hands its results to a run.

Three things tell it: Lightning's hooks (:class:`MonitorCallback`), a :class:`lit_backdoor.callbacks.Recorder` in any
other training loop, and :func:`lit_backdoor.replay` for the checkpoints of a run.
"""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_backdoor.callbacks.as_validated import averaging_callbacks, let_averages_come_first
from lit_backdoor.callbacks.charts import Charts, HasCharts, all_charts
from lit_backdoor.callbacks.history import history_of
from lit_backdoor.callbacks.run import RunOutlet, run_of
from lit_backdoor.functional.stopping import Stopped


class Monitor:
    """Is told what the model is after some optimizer steps, and hands results to ``self.run``."""

    run: RunOutlet | None = None
    """Where results go; from :meth:`begin` on."""

    def check_model(self, model: Any, datamodule: Any, monitors: Sequence[Any]) -> None:
        """Make sure that everything the monitor needs is there.

        Args:
            model: as it will be observed.
            datamodule: asked for ``probes()`` where the monitor has none; may be None.
            monitors: all that observe the same run, this one included.

        Raises:
            ContractError: naming what is missing, together with the fix.
        """

    def begin(self, run: RunOutlet, step: int) -> None:
        """Begin at ``step``: what was measured there and later is forgotten.

        Raises:
            ContractError: if results of another run are in the way.
        """
        self.run = run

    def observe(self, model: Any, step: int, last: bool = False) -> bool:
        """Measure, if it is time; say whether it was.

        Args:
            model: as it is after ``step`` optimizer steps.
            step: optimizer steps done; never less than before.
            last: training ends with this step.

        Raises:
            Stopped: a signal asks to stop; the step is not measured.
        """
        return False

    def finish(self, step: int) -> None:
        """Say the last word: training has ended with ``step``, and everything is measured."""

    def custom_scalars(self) -> Charts:
        """The charts of this monitor in TensorBoard's custom scalars."""
        return {}


class MonitorCallback(Monitor, Callback):
    """A monitor in a Trainer: Lightning's hooks become the calls above."""

    def model_of(self, module: LightningModule) -> Any:
        """What is measured of a LightningModule."""
        return module

    def check(self, module: LightningModule, datamodule: Any, callbacks: Sequence[Callback]) -> None:
        """See :meth:`Monitor.check_model`."""
        self.check_model(self.model_of(module), datamodule, callbacks)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before training starts that everything is there.

        Raises:
            ContractError: see :meth:`Monitor.check_model`.
        """
        if stage == "fit":
            history_of(trainer)
            let_averages_come_first(trainer)
            self.check(pl_module, trainer.datamodule, trainer.callbacks)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at step 0, or at that of a checkpoint; the first monitor lays out everybody's charts."""
        self.begin(run := run_of(trainer), trainer.global_step)
        with_charts = [callback for callback in trainer.callbacks if isinstance(callback, HasCharts)]  # type: ignore[attr-defined]
        if self is with_charts[0]:
            run.show_charts(all_charts([pl_module, *with_charts]))
            for averaging in averaging_callbacks(trainer):
                rank_zero_info(
                    f"Monitors measure the weights that {type(averaging).__name__} averages, as validation does"
                )
        self._observe(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Measure if it is time."""
        self._observe(trainer, pl_module, last=trainer.global_step == trainer.max_steps)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last step, if that has not happened."""
        self._observe(trainer, pl_module, last=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say the last word."""
        self.finish(trainer.global_step)

    def _observe(self, trainer: Trainer, module: LightningModule, last: bool = False) -> None:
        """Measure if it is time, unless a signal has stopped this step's measurements."""
        history, step = history_of(trainer), trainer.global_step
        if history.stopped_step == step:
            return
        try:
            self.observe(self.model_of(module), step, last)
        except Stopped:
            history.stopped_step = step
