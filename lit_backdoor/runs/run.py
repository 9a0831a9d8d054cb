"""What a run directory holds, read once and checked."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import (
    Head,
    HeadAttribution,
    HeadProgress,
    HeadScores,
    HeadSet,
    HeadSpecificity,
    PatchingResult,
    PathPatchingResult,
    ShapleyResult,
    default_edge_sets,
    find_loss_spikes,
    head_specificity,
    patch_paths,
    shapley_values,
)
from lit_backdoor.functional.ranks import head_order
from lit_backdoor.runs.schema import read_results
from lit_backdoor.runs.tables import history, rows_by_step
from lit_backdoor.task import Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

NO_ROWS = pd.DataFrame({"step": [], "probe": []})

PATH_EXAMPLES = 1024
"""Examples on which paths are patched, as the shipped monitor does."""

Result = TypeVar("Result")

OF_HEADS = ("head_patching", "head_attribution", "attention", "head_specificity", "path_patching")
"""Tables of monitors, without ``.csv``. A run of another task holds one of them or more."""


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
        series: which of several series of the same model it belongs to; empty where there is one. Of a run of another
            task: what it is called beside the other runs.
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
    series: str = ""

    @property
    def p1(self) -> int | None:
        """The backdoor's modulus; None for a clean model."""
        return self.task.moduli[1] if self.task is not None and len(self.task.moduli) > 1 else None

    @property
    def group(self) -> str:
        """The runs among which this one counts: `mod 7`, or `clean`, and the series where the model has several."""
        model = "clean" if self.p1 is None else f"mod {self.p1}"
        return f"{model} ({self.series})" if self.series else model

    @property
    def split(self) -> int:
        """Seed of the split into training and validation examples."""
        return self.options.get("split_seed") or 0

    @property
    def name(self) -> str:
        """`mod 7, seed 0`, with the split where it is not split 0; of another task the folder."""
        if self.task is None:
            return self.series or last_folders(self.path)
        return f"{self.group}, seed {self.seed}{f', split {self.split}' if self.split else ''}"

    @property
    def step(self) -> int:
        """Optimizer steps that the run has done."""
        tables = [self.metrics, *(self.tables[name] for name in OF_HEADS if name in self.tables)]
        return int(max(table["step"].max() for table in tables if len(table)))

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
        return self.tables.get("metrics", NO_ROWS)

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
        return self.last_results("head_attribution", HeadAttribution)

    def last_results(self, table: str, kind: type[Result]) -> dict[str, list[Result]]:
        """What a table holds of its last whole step, by probe; empty without such a table."""
        rows = last_whole_step(self.tables.get(table, NO_ROWS))
        return {
            str(probe): read_results(kind, some.to_dict("records")) for probe, some in rows.groupby("probe", sort=False)
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
    def left(self) -> dict[HeadSet, float]:
        """The backdoor accuracy with benign activations in each set of heads: what the backdoor needs."""
        return {result.heads: result.recipient_accuracy for result in self.patching["backdoor"]}

    @cached_property
    def brought(self) -> dict[HeadSet, float]:
        """The backdoor accuracy of the benign run with triggered activations in each set of heads: what suffices."""
        return {result.heads: result.donor_accuracy for result in self.patching["benign"]}

    @cached_property
    def order(self) -> tuple[Head, ...]:
        """The heads of a run with a trigger by rank; of equal accuracies, the lower logit difference is first."""
        return head_order(self.left, {result.heads: result.logit_diff for result in self.patching["backdoor"]})

    @property
    def floor(self) -> float:
        """What is left of the backdoor when it is gone."""
        return self.patching["backdoor"][0].floor

    def shapley(self, direction: str = "needed") -> ShapleyResult | None:
        """Shapley values of the backdoor accuracy; None unless all sets of heads were patched."""
        values = self.left if direction == "needed" else self.brought
        return shapley_values(values) if len(values) == 2 ** len(self.order) else None

    @cached_property
    def specificity(self) -> dict[Head, HeadSpecificity]:
        """What each head costs either rule at the end, by the run's table or else its weights; empty without both."""
        results = self.last_results("head_specificity", HeadSpecificity).get("backdoor", [])
        if not results and self.model is not None and self.task is not None:
            results = head_specificity(self.model, task_probes(self.task)["backdoor"])
        return {result.head: result for result in results}

    @cached_property
    def paths(self) -> dict[str, list[PathPatchingResult]]:
        """Every group of edges and every single edge at the end, by probe; from the table or else the weights."""
        measured = self.last_results("path_patching", PathPatchingResult)
        if measured or self.model is None or self.task is None:
            return measured
        probes = {name: probe.sample(PATH_EXAMPLES) for name, probe in task_probes(self.task).items()}
        return {name: patch_paths(self.model, p, default_edge_sets(self.model, p)) for name, p in probes.items()}

    @property
    def progress(self) -> dict[str, dict[int, list[HeadProgress]]]:
        """progress_measures.csv, by rule and step; empty without it."""
        table = self.tables.get("progress_measures", NO_ROWS)
        return {
            str(rule): {
                int(step): read_results(HeadProgress, rows.to_dict("records")) for step, rows in of_rule.groupby("step")
            }
            for rule, of_rule in table.groupby("probe", sort=False)
        }

    @cached_property
    def unpatched(self) -> dict[str, float]:
        """The accuracy of each rule on all pairs, nothing patched."""
        return {
            probe: next(result.recipient_accuracy for result in results if not result.heads)
            for probe, results in self.patching.items()
        }

    @cached_property
    def _patching_rows(self) -> list[dict[str, Any]]:
        return self.tables["head_patching"].to_dict("records")


def last_folders(path: Path) -> str:
    """What to call a run directory where nothing better is known, `version_0` with the folder around it."""
    return "/".join(path.resolve().parts[-2:])


def told_apart(names: Mapping[Path, str]) -> dict[Path, str]:
    """The names of folders; if two are alike, each is named by where it lies below the folder common to all."""
    if len(set(names.values())) == len(names):
        return dict(names)
    common = os.path.commonpath([place.parent for place in names])
    return {place: str(place.relative_to(common)) for place in names}


def slug(name: str) -> str:
    """A run or a group in file names, `mod1_seed0`."""
    return re.sub(r"\W+", "_", re.sub(r"(mod|seed|split) ", r"\1", name)).strip("_")


def last_whole_step(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last step at which everything was measured for every probe; a kill may have cut one short."""
    sizes = table.groupby("step").size()
    whole = sizes[sizes == sizes.max()]
    return table[table["step"] == (whole.index.max() if len(whole) else None)]
