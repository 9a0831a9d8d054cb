"""The logger of a run: TensorBoard's event files and ``metrics.csv``, side by side in the run directory."""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_backdoor.runs.directory import claim_next_version, require_plain_name
from lit_backdoor.runs.environment import global_seed
from lit_backdoor.runs.file_names import METRICS
from lit_backdoor.runs.tables import CsvTable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLogger(TensorBoardLogger):
    """Writes scalars to TensorBoard, and ``train/*`` and ``val/*`` to ``metrics.csv`` too: one row per step.

    Args:
        save_dir: Directory under which runs are kept.
        name: Folder of the runs inside it.
        version: Folder of this run; null takes the next free version_N.
    """

    def __init__(self, save_dir: str = ".", name: str = "lightning_logs", version: int | str | None = None) -> None:
        require_plain_name("RunLogger.name", name, folders=True)
        if isinstance(version, str):
            require_plain_name("RunLogger.version", version)
            if not version:
                raise ValueError("RunLogger.version: '' is no folder; a name, a number, or null for the next free one")
        super().__init__(save_dir, name=name, default_hp_metric=False)
        self._runs = Path(os.path.expanduser(os.path.expandvars(os.path.join(save_dir, name))))
        self._given_version = version
        self._run_dir: Path | None = None
        self._first_step = 0
        self._writer: SummaryWriter | None = None
        self._pending: dict[str, float] = {}
        self._written: dict[str, float] = {}
        self._table: CsvTable | None = None
        self._unshown_hparams: dict[str, str] = {}

    def resume(self, run_dir: Path, step: int) -> None:
        """Continue the run in ``run_dir`` from a checkpoint of ``step``: what it logged from there on is redone."""
        self._run_dir = run_dir
        self.begin_at(step)

    def begin_at(self, step: int) -> None:
        """Keep what ``metrics.csv`` and TensorBoard have before ``step``, where training begins."""
        self._first_step = step

    @property
    def log_dir(self) -> str:
        """The run directory. Where no version was given, the first to ask claims the next free one.

        Raises:
            ValueError: if no directory can be made there.
        """
        if self._run_dir is None:
            version = self._given_version
            if version is None:
                if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
                    return str(self._runs)  # the Trainer replaces it by what the first process says
                self._run_dir = claim_next_version(self._runs)
            else:
                self._run_dir = self._runs / (version if isinstance(version, str) else f"version_{version}")
        return str(self._run_dir)

    @property
    def save_dir(self) -> str:
        """Where the run directory is; with ``name`` and ``version``, Lightning puts its path together again."""
        return str(Path(self.log_dir).parent)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return Path(self.log_dir).name

    @property
    @rank_zero_experiment
    def experiment(self) -> "SummaryWriter":
        """TensorBoard's writer. What a killed run left behind at the first step and later is not shown."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.log_dir, purge_step=self._first_step)
        return self._writer

    @property
    def table(self) -> CsvTable:
        """The table behind ``metrics.csv``; shortened, as it is first used, to what comes before the first step."""
        if self._table is None:
            self._table = CsvTable(Path(self.log_dir) / METRICS)
            self._table.truncate(self._first_step)
        return self._table

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(dict(metrics), step)
        measured = {name: value for name, value in metrics.items() if name.startswith(("train/", "val/"))}
        if step is None or not measured:
            return
        if self._pending and self._pending["step"] != step:
            self._write_pending()
        self._pending |= {"step": step, **measured}

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Keep ``params`` for hparams.yaml; TensorBoard's hparams view gets them beside the first metrics."""
        known = dict(vars(params) if isinstance(params, Namespace) else params)
        if (seed := global_seed()) is not None:
            known["seed_everything"] = seed
        super().log_hyperparams(known, metrics, step)
        self._unshown_hparams = {name: str(known[name]) for name in sorted(known, key=_hparams_order)}

    @rank_zero_only
    def save(self) -> None:
        """Bring everything logged so far to the disk."""
        self._write_pending()
        self.experiment.flush()
        super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left and close; where that fails, TensorBoard's writing thread ends all the same.

        Raises:
            OSError: a run that has not failed can't be written to its end. Of one that has, the first error is told:
                another one here would also keep Lightning from giving the signals back.
        """
        try:
            self._write_pending()
            self._show_hparams(list(self._written))
            if status == "success":
                self.save()
            if self._writer is not None:
                self._writer.close()
        except OSError:
            if status == "success":
                raise
        finally:
            if self._writer is not None and (writer := self._writer.file_writer) is not None:
                with suppress(OSError):
                    writer.close()

    def _write_pending(self) -> None:
        if self._pending:
            if self._written.get("step") == self._pending["step"]:  # the rest of a row that was saved early
                self.table.truncate(int(self._pending["step"]))
                self._pending = self._written | self._pending
            columns = sorted(self._pending, key=_column_order)
            if {name.partition("/")[0] for name in columns} >= {"train", "val"}:
                self._show_hparams(columns)
            self.table.append([{name: self._pending[name] for name in columns}])
            self._written, self._pending = self._pending, {}

    def _show_hparams(self, columns: Sequence[str]) -> None:
        """Fill TensorBoard's hparams view, once: it takes the first list of metrics that it reads for good.

        The metrics' values are the run's own scalars, so none is invented here.

        Args:
            columns: of metrics.csv, as far as they have been measured.
        """
        from torch.utils.tensorboard.summary import hparams

        if not self._unshown_hparams or (writer := self.experiment.file_writer) is None:
            return
        for summary in hparams(self._unshown_hparams, {name: 0.0 for name in columns if name != "step"}):
            writer.add_summary(summary)
        self._unshown_hparams = {}


def _hparams_order(name: str) -> tuple[int, str]:
    """What people vary comes first: TensorBoard shows only the first few columns."""
    first = ("moduli", "seed_everything", "lr", "weight_decay", "train_fraction")
    return first.index(name) if name in first else len(first), name


def _column_order(name: str) -> tuple[bool, bool, str]:
    stage, _, metric = name.partition("/")
    return name != "step", metric != "loss" and name != "step", stage
