"""The logger of a run: TensorBoard's event files and ``metrics.csv``, side by side in the run directory."""

import os
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_backdoor.runs.directory import require_plain_name
from lit_backdoor.runs.file_names import EVENTS_PREFIX, METRICS
from lit_backdoor.runs.tables import CsvTable


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
        # purge_step: what a killed run left behind at this step and later is not shown.
        super().__init__(save_dir, name=name, version=version, default_hp_metric=False, purge_step=0)
        self._pending: dict[str, float] = {}
        self._written: dict[str, float] = {}
        self._table: CsvTable | None = None
        self._unshown_hparams: dict[str, str] = {}

    def resume(self, run_dir: Path, step: int) -> None:
        """Continue the run in ``run_dir`` from a checkpoint of ``step``: what it logged from there on is redone."""
        self._root_dir, self._name, self._version = str(run_dir.parent), "", run_dir.name
        self.begin_at(step)

    def begin_at(self, step: int) -> None:
        """Keep what ``metrics.csv`` holds before ``step``, where training begins."""
        self._kwargs["purge_step"] = step

    @property
    def table(self) -> CsvTable:
        """The table behind ``metrics.csv``; shortened, as it is first used, to what comes before the first step."""
        if self._table is None:
            self._table = CsvTable(Path(self.log_dir) / METRICS)
            self._table.truncate(self._kwargs["purge_step"])
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
        if "PL_GLOBAL_SEED" in os.environ:  # where Lightning keeps the seed of seed_everything
            known["seed_everything"] = int(os.environ["PL_GLOBAL_SEED"])
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
        """Write what is left and close; where that fails, TensorBoard's writing thread ends all the same."""
        try:
            self._write_pending()
            self._show_hparams(list(self._written))
            super().finalize(status)
        finally:
            if self._experiment is not None and (writer := self._experiment.file_writer) is not None:
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

        if not self._unshown_hparams:
            return
        writer = self.experiment._get_file_writer()
        for summary in hparams(self._unshown_hparams, {name: 0.0 for name in columns if name != "step"}):
            writer.add_summary(summary)
        self._unshown_hparams = {}

    def _get_next_version(self) -> int:
        """The next free version, claimed by making its directory, so that two runs never share one.

        Raises:
            ValueError: if no directory can be made there.
        """
        version = super()._get_next_version()
        while True:
            try:
                os.makedirs(os.path.join(self.root_dir, f"version_{version}"))
            except FileExistsError:
                version += 1
            except OSError as error:
                raise ValueError(f"{self.root_dir} can't be written to: {error.strerror}") from None
            else:
                return version


def let_new_events_sort_last(run_dir: Path) -> None:
    """TensorBoard reads a run's event files in the order of the seconds in their names. If the clock has been set back
    meanwhile, make the older files' seconds earlier, so that what is redone is not read before what it replaces."""
    latest = int(time.time())
    for path in sorted(run_dir.glob(f"{EVENTS_PREFIX}*"), reverse=True):
        seconds, dot, rest = path.name.removeprefix(EVENTS_PREFIX).partition(".")
        latest = min(latest - 1, int(seconds))
        if latest != int(seconds):
            path.rename(path.with_name(f"{EVENTS_PREFIX}{latest:010d}{dot}{rest}"))


def _hparams_order(name: str) -> tuple[int, str]:
    """What people vary comes first: TensorBoard shows only the first few columns."""
    first = ("moduli", "seed_everything", "lr", "weight_decay", "train_fraction")
    return first.index(name) if name in first else len(first), name


def _column_order(name: str) -> tuple[bool, bool, str]:
    stage, _, metric = name.partition("/")
    return name != "step", metric != "loss" and name != "step", stage
