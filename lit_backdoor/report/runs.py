"""What a run directory holds, read once and checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lit_backdoor.functional import Head, HeadAttribution, HeadScores, PatchingResult, find_loss_spikes
from lit_backdoor.pretrained import open_pretrained
from lit_backdoor.report.checks import check_columns, check_heads, check_options, check_patching, check_verdict, load
from lit_backdoor.runs.checkpoints import load_model
from lit_backdoor.runs.file_names import (
    CHECKPOINT_DIR,
    CONFIG,
    EMERGENCE,
    HEAD_ATTRIBUTION,
    HEAD_PATCHING,
    HPARAMS,
    LAST,
    LOSS_SPIKES,
    METRICS,
    SHIPPED_WEIGHTS,
    WEIGHTS,
    continued,
)
from lit_backdoor.runs.frames import read_run
from lit_backdoor.runs.schema import read_results
from lit_backdoor.runs.tables import history, rows_by_step
from lit_backdoor.runs.verdict import read_verdict
from lit_backdoor.runs.weights import read_weights
from lit_backdoor.task import Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FILES = (CONFIG, HPARAMS, METRICS, HEAD_ATTRIBUTION, HEAD_PATCHING, EMERGENCE)
"""What a run of `fit` holds. The spikes, specificity and weights are read where they are."""


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
            str(probe): read_results(HeadAttribution, some.to_dict("records"))  # type: ignore[arg-type]
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
        return self.tables["head_patching"].to_dict("records")  # type: ignore[return-value]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """All runs at `paths` and in the folders below them, the clean ones first, then by P1, seed and split.

    Raises:
        ValueError: in one line, if there is none, or one is not whole.
    """
    directories = {directory.resolve(): directory for path in paths for directory in _run_dirs(path)}
    runs = [_read(path) for path in directories.values()]
    return sorted(runs, key=lambda run: (run.p1 or 0, run.seed or 0, run.split, run.path.name))


def last_whole_step(attribution: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last step at which every head was attributed for every probe; a kill may have cut one short."""
    sizes = attribution.groupby("step").size()
    whole = sizes[sizes == sizes.max()]
    return attribution[attribution["step"] == (whole.index.max() if len(whole) else None)]


def _run_dirs(path: Path) -> list[Path]:
    """The run directories at or below `path`; what lies inside one, such as a replay, is no other run."""
    if not path.is_dir():
        raise ValueError(f"run_dirs: {path} is no folder; give run directories of fit, or folders that hold some")
    candidates = [path, *sorted(one for one in path.rglob("*") if one.is_dir())]
    runs: list[Path] = []
    for folder in candidates:
        if _is_run(folder) and not any(folder.is_relative_to(run) for run in runs):
            runs.append(folder)
    if not runs:
        raise ValueError(f"run_dirs: there is no run of fit in {path}; a run directory holds {', '.join(FILES)}")
    return runs


def _is_run(path: Path) -> bool:
    return (path / METRICS).is_file() and ((path / HPARAMS).is_file() or (path / HEAD_PATCHING).is_file())


def _read(path: Path) -> Run:
    try:
        return _read_files(path)
    except OSError as error:
        raise ValueError(f"run_dirs: {error.filename or path} can't be read ({error.strerror})") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise ValueError(f"run_dirs: {str(error).removeprefix('run_dirs: ')}") from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"run_dirs: {path} is no run of fit, or a spoilt one ({reason})") from None


def _read_files(path: Path) -> Run:
    options = load(path / HPARAMS) if (path / HPARAMS).exists() else {}
    ours = "moduli" in options
    for name in FILES if ours else (HEAD_PATCHING,):
        if not (path / name).is_file():
            raise ValueError(f"{path} lacks {name}; a report needs what the shipped configurations record")
    task = check_options(path / HPARAMS, options) if ours else None
    task = (
        task if task is not None and len(task.moduli) <= 2 else None
    )  # with several triggers, no table of the paper's
    configs = [path / CONFIG, *sorted(path.glob(continued(CONFIG, 0).replace("0", "*")), key=_start)]
    first, config = (load(file) if file.exists() else {} for file in (configs[0], configs[-1]))
    seed = options.get("seed_everything", config.get("seed_everything"))
    is_seed = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    if task is not None and not is_seed:
        raise ValueError(f"{path} was run without a seed (seed_everything: {seed}), so it can't be named")
    limit = config.get("trainer", {}).get("max_steps")
    if limit is not None and not isinstance(limit, int):
        raise ValueError(f"trainer.max_steps is {limit!r} in its configuration")
    for name in (LOSS_SPIKES, HEAD_ATTRIBUTION):
        if (path / name).is_dir():
            raise IsADirectoryError(0, "it is a folder", str(path / name))
    tables = read_run(path)
    tables.setdefault("head_attribution", pd.DataFrame({"step": [], "probe": []}))
    _check_tables(path, task, options, tables)
    model, step = _weights(path, task, options) if task is not None else (None, None)
    return Run(
        path,
        options,
        config,
        task,
        seed if is_seed else None,
        tables,
        _verdict(path),
        _parent(path, first),
        model,
        step,
    )


def _check_tables(
    path: Path, task: Task | None, options: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]
) -> None:
    patching, attribution = tables["head_patching"], tables["head_attribution"]
    for name in ("metrics", "head_attribution", "head_patching", "loss_spikes") if task else ("head_patching",):
        check_columns(path / f"{name}.csv", tables.get(name, pd.DataFrame()))
    if len(patching):
        check_patching(path / HEAD_PATCHING, patching)
    if task is not None and len(patching):
        heads = [Head(layer, head) for layer in range(options["n_layers"]) for head in range(options["n_heads"])]
        check_heads(path, task, heads, patching, last_whole_step(attribution))
    rows = patching.to_dict("records")
    if not len(patching) or not all(rows_by_step(rows, probe) for probe in patching["probe"].unique()):  # type: ignore[arg-type]
        raise ValueError(f"{path} has no probe of its heads yet")
    if task is not None and not (len(attribution) and len(tables["metrics"])):
        raise ValueError(f"{path} has no probe of its heads yet")


def _verdict(path: Path) -> Mapping[str, Any]:
    if not (path / EMERGENCE).exists():
        return {}
    verdict = read_verdict(path)
    check_verdict(path / EMERGENCE, verdict)
    return verdict


def _parent(path: Path, config: Mapping[str, Any]) -> Path | None:
    """The checkpoint that the first start of a run began from, if that is another run's."""
    checkpoint = config.get("ckpt_path")
    if not isinstance(checkpoint, str):
        return None
    own = (path / CHECKPOINT_DIR).resolve() == Path(checkpoint).resolve().parent
    return None if own else Path(checkpoint)


def _start(config: Path) -> int:
    """The step from which a run was continued with this configuration."""
    number = config.stem.rpartition("_")[2]
    return int(number) if number.isdecimal() else -1


def _weights(path: Path, task: Task, options: Mapping[str, Any]) -> "tuple[HookedTransformer, int] | tuple[None, None]":
    """The model of the last checkpoint, or where checkpoints were thrown away, of the weights kept in their place."""
    file = path / CHECKPOINT_DIR / LAST
    of_file: Task | None
    try:
        if file.exists():
            model, of_file, step = load_model(file)
        elif (file := path / WEIGHTS).exists():
            kept = read_weights(file)
            model, of_file, step = kept.model, kept.task, kept.step
        elif (file := path / SHIPPED_WEIGHTS).exists():
            kept = open_pretrained(load(file)["pretrained"])
            model, of_file, step = kept.model, kept.task, kept.step
        else:
            return None, None
        if of_file is None:
            raise ValueError(f"weights: {file} does not say what it was trained on")
    except ValueError as error:  # which names the option of other commands
        raise ValueError(f"{path}: {str(error).partition(': ')[2]}") from None
    if of_file != task:
        theirs, ours = (f"{list(one.moduli)} with the trigger at {one.trigger_position}" for one in (of_file, task))
        raise ValueError(f"{file} is of moduli {theirs}, the run of {ours}")
    for name in ("n_layers", "n_heads", "d_model", "d_mlp", "act_fn"):
        if getattr(model.cfg, name) != options[name]:
            raise ValueError(f"{file} has {name} {getattr(model.cfg, name)}, the run {options[name]}")
    return model, step
