"""``fit``, ``validate`` and ``test``."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningCLI

from lit_backdoor.analysis.measure import analyze
from lit_backdoor.analysis.probed_task import probed_addition
from lit_backdoor.analysis.terminal import analysis_summary
from lit_backdoor.callbacks import ProbeCallback
from lit_backdoor.callbacks.run import run_dir
from lit_backdoor.cli.checked_cli import CheckedCLI
from lit_backdoor.cli.parser import checking_options
from lit_backdoor.cli.quiet import quiet_writers
from lit_backdoor.cli.run_summary import fit_summary
from lit_backdoor.logger import RunLogger
from lit_backdoor.runs.directory import RunStart, locked
from lit_backdoor.runs.environment import keep_environment
from lit_backdoor.runs.file_names import CHECKPOINT_DIR, LAST


class StorageFailed(Exception):
    """A file of the run could not be written.

    Attributes:
        checkpoint: what to continue from; ``None`` if there is none.
    """

    def __init__(self, error: OSError, directory: Path) -> None:
        where = error.filename or directory
        gone = "" if directory.is_dir() else f"; {directory} was removed while the run wrote into it"
        super().__init__(f"{where} can't be written: {error.strerror or error}{gone}")
        last = directory / CHECKPOINT_DIR / LAST
        self.checkpoint = last if last.exists() else None


class BackdoorCLI(CheckedCLI):
    """Runs the subcommand when all is checked, in a run directory that can be continued."""

    def __init__(self, args: Sequence[str]) -> None:
        self._started = time.monotonic()
        super().__init__(args)

    _run_subcommand = LightningCLI._run_subcommand

    def fit(self, **kwargs: Any) -> None:
        """Train, in a run directory that no other process works in meanwhile.

        Raises:
            OptionError: before anything is written, if the directory is in use, holds another run, or can't be made.
            StorageFailed: if the disk is full, or the directory is gone.
        """
        if _is_trial(self.trainer):
            return self.trainer.fit(**kwargs, weights_only=True)
        with ExitStack() as stack:
            with checking_options():
                start = self._begin()
                directory = run_dir(self.trainer)
                stack.enter_context(locked(directory))
                start.prepare(directory, own=self.trainer.logger is not None)
            stack.enter_context(quiet_writers())
            try:
                self._keep_environment(directory)
                for note in self._notes:
                    print(f"note: {note}", file=sys.stderr)
                self.trainer.fit(**kwargs, weights_only=True)
            except OSError as error:
                raise StorageFailed(error, directory) from error

    def _begin(self) -> RunStart:
        """How the run begins; the logger is told where. Without our logger, the checkpoint's run is not followed."""
        logger, start = self.trainer.logger, self._start
        if self._checkpoint is None or not isinstance(logger, RunLogger):
            return RunStart(None)
        if (branch_dir := start.branch_dir) is not None:
            logger.resume(branch_dir, start.step)
        elif start.continues and start.source is not None:
            logger.resume(start.source, start.step)
        elif start.source is not None:
            logger.begin_at(start.step)
        return start

    def _keep_environment(self, directory: Path) -> None:
        """Store what a bug report needs, and say if the machine is another than the one that the run began on."""
        if self.trainer.logger is None:
            return
        configs = self.config[str(self.subcommand)].get("config") or []
        beside = Path(str(configs[0])).absolute().parent if configs else Path.cwd()
        step = self._checkpoint["global_step"] if self._checkpoint else None
        if changed := keep_environment(directory, beside, step):
            print(f"note: the last bits may differ from an undisturbed run's: {'; '.join(changed)}", file=sys.stderr)

    def after_test(self) -> None:
        """The same analysis as ``analyze``, printed."""
        step = self._checkpoint["global_step"] if self._checkpoint else 0
        task = probed_addition(self.datamodule.task, self.datamodule.train_examples)
        print(analysis_summary(analyze(self.model.model, task, step), None))

    def after_fit(self) -> None:
        if self.trainer.log_dir is not None and self.trainer.is_global_zero and not _is_trial(self.trainer):
            callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            probing = sum(callback.seconds for callback in callbacks if isinstance(callback, ProbeCallback))
            print(fit_summary(Path(self.trainer.log_dir), time.monotonic() - self._started, probing))


def _is_trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
