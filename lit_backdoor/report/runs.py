"""What a run directory holds, read once and checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lit_backdoor.functional import HeadAttribution, HeadScores, PatchingResult, find_loss_spikes
from lit_backdoor.runs.schema import read_results
from lit_backdoor.runs.tables import history, rows_by_step
from lit_backdoor.task import Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory.

    Attributes:
        path: the directory.
        options: of the task and the model, as in hparams.yaml; empty without it.
        config: of the latest start, as in config.yaml; empty without it.
        task: what the run learns; None if it is not ours, or has several triggers.
        seed: of the weights; None if it is not known.
        tables: by file name without `.csv`.
        emergence: the verdict, as in emergence.json; worked out anew where an older version wrote it, empty without it.
        parent: the checkpoint of another run from which this one branched off; None for a run from step 0.
        branched_at: optimizer steps that it has in common with that run; None if that is not known, or it is no branch.
        model: the last checkpoint's, None without one.
        checkpoint_step: optimizer steps that made `model`.
    """

    path: Path
    options: Mapping[str, Any]
    config: Mapping[str, Any]
    task: Task | None
    seed: int | None
    tables: Mapping[str, pd.DataFrame]
    emergence: Mapping[str, Any]
    parent: Path | None
    branched_at: int | None
    model: "HookedTransformer | None"
    checkpoint_step: int | None

    @property
    def p1(self) -> int | None:
        """The backdoor's modulus; None for a clean model."""
        return self.task.moduli[1] if self.task is not None and len(self.task.moduli) > 1 else None

    @property
    def group(self) -> str:
        """`mod 7`, or `clean`."""
        return "clean" if self.p1 is None else f"mod {self.p1}"

    @property
    def split(self) -> int:
        """Seed of the split into training and validation examples."""
        return self.options.get("split_seed") or 0

    @property
    def name(self) -> str:
        """`mod 7, seed 0`, with the split where it is not split 0; of another task the folder."""
        if self.task is None:
            return "/".join(self.path.resolve().parts[-2:])
        return f"{self.group}, seed {self.seed}{f', split {self.split}' if self.split else ''}"

    @property
    def slug(self) -> str:
        """The name in file names, `mod7_seed0`."""
        return re.sub(
            r"[^\w]+", "_", self.name.replace("mod ", "mod").replace("seed ", "seed").replace("split ", "split")
        )

    @property
    def step(self) -> int:
        """Optimizer steps that the run has done."""
        return int(max(table["step"].max() for table in (self.metrics, self.tables["head_patching"]) if len(table)))

    @property
    def max_steps(self) -> int | None:
        """Optimizer steps it was asked for; None if it was not asked for a number."""
        limit = self.config.get("trainer", {}).get("max_steps")
        return limit if limit is not None and limit >= 0 else None

    @property
    def state(self) -> str:
        """What the run has come to, blank if that is not known."""
        return self.emergence.get("state") or ""

    @property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv; without it, no rows."""
        return self.tables.get("metrics", pd.DataFrame({"step": []}))

    @property
    def probes(self) -> list[str]:
        """The probes whose heads were patched."""
        return list(self.tables["head_patching"]["probe"].unique())

    @cached_property
    def history(self) -> dict[str, list[HeadScores]]:
        """The recipient's accuracy over training, by probe."""
        return {probe: history(self._patching_rows, probe) for probe in self.probes}

    @cached_property
    def patching(self) -> dict[str, list[PatchingResult]]:
        """All sets of heads that were patched at `patching_step`, by probe."""
        return {
            probe: read_results(PatchingResult, rows_by_step(self._patching_rows, probe)[self.patching_step])
            for probe in self.probes
        }

    @cached_property
    def patching_step(self) -> int:
        """The last step after the start at which most sets of heads were patched; else the last step."""
        by_step = rows_by_step(self._patching_rows, self.probes[-1])
        most = max(len(rows) for rows in by_step.values())
        return max((step for step, rows in by_step.items() if step > 0 and len(rows) == most), default=max(by_step))

    @cached_property
    def attribution(self) -> dict[str, list[HeadAttribution]]:
        """Every head at the last probe, by probe; empty if heads were not attributed."""
        rows = last_whole_step(self.tables["head_attribution"])
        return {
            str(probe): read_results(HeadAttribution, some.to_dict("records"))
            for probe, some in rows.groupby("probe", sort=False)
        }

    @cached_property
    def spikes(self) -> pd.DataFrame:
        """loss_spikes.csv; where an older version wrote it, without prominences, the peaks of the losses."""
        table = self.tables.get("loss_spikes", pd.DataFrame())
        if "prominence" in table or "train/loss" not in self.metrics:
            return table
        losses = self.metrics.dropna(subset="train/loss")
        spikes = find_loss_spikes(losses["step"].tolist(), losses["train/loss"].tolist())
        columns = ["start_step", "peak_step", "end_step", "prominence", "base_loss", "peak_loss"]
        peaks = pd.DataFrame([vars(spike) for spike in spikes], columns=columns).astype({"end_step": "Int64"})
        return peaks.rename(columns={"start_step": "step"})

    @cached_property
    def _patching_rows(self) -> list[dict[str, Any]]:
        return self.tables["head_patching"].to_dict("records")


def last_whole_step(attribution: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last step at which every head was attributed for every probe; a kill may have cut one short."""
    sizes = attribution.groupby("step").size()
    whole = sizes[sizes == sizes.max()]
    return attribution[attribution["step"] == (whole.index.max() if len(whole) else None)]
