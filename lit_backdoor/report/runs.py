"""What a run directory holds, read once and checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_backdoor.functional import Head, HeadAttribution, HeadScores, PatchingResult, find_loss_spikes
from lit_backdoor.pretrained import open_pretrained
from lit_backdoor.report.checks import check_options, check_probes, check_table, check_verdict, load
from lit_backdoor.runs.checkpoints import load_model
from lit_backdoor.runs.file_names import CHECKPOINT_DIR, LAST, SHIPPED_WEIGHTS, WEIGHTS
from lit_backdoor.runs.schema import Row, read_results
from lit_backdoor.runs.tables import curves, history, read_table, rows_by_step
from lit_backdoor.runs.verdict import read_verdict
from lit_backdoor.runs.weights import read_weights
from lit_backdoor.task import Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FILES = ("config.yaml", "hparams.yaml", "metrics.csv", "head_attribution.csv", "head_patching.csv", "emergence.json")
"""What makes a folder a run; ``loss_spikes.csv``, ``checkpoints/last.ckpt`` and ``weights.safetensors`` are read where
they are."""

FREE_OPTIONS = frozenset({"seed_everything", "moduli", "last_position", "steps_per_epoch"})
"""Options in which the runs of one report may differ: what is compared, and what changes nothing in a result."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory.

    Attributes:
        path: the directory.
        options: of the task and the model, as in hparams.yaml.
        seed: of the weights.
        step: optimizer steps that the run has done, by metrics.csv.
        max_steps: optimizer steps it was asked for; None if it was not asked for a number.
        metrics: rows of metrics.csv.
        attribution: every head at the last probe, by probe.
        patching: all sets of heads, by probe, measured at ``patching_step``.
        patching_step: the last probe of all sets of heads; before there was one, the last probe.
        history: of the recipient's accuracy, by probe.
        emergence: the verdict, as in emergence.json; worked out anew where an older version wrote it.
        spikes: rows of loss_spikes.csv; where an older version wrote it, the peaks of the losses in metrics.csv.
        model: the last checkpoint's, None without one.
        checkpoint_step: optimizer steps that made ``model``.
    """

    path: Path
    options: Mapping[str, Any]
    seed: int
    step: int
    max_steps: int | None
    metrics: Sequence[Row]
    attribution: Mapping[str, Sequence[HeadAttribution]]
    patching: Mapping[str, Sequence[PatchingResult]]
    patching_step: int
    history: Mapping[str, Sequence[HeadScores]]
    emergence: Mapping[str, Any]
    spikes: Sequence[Row]
    model: "HookedTransformer | None"
    checkpoint_step: int | None

    @property
    def task(self) -> Task:
        """What the run learns."""
        return Task.from_options(self.options)

    @property
    def p1(self) -> int | None:
        """The backdoor's modulus; None for a clean model."""
        return self.task.moduli[1] if len(self.task.moduli) > 1 else None

    @property
    def group(self) -> str:
        """``mod 7``, or ``clean``."""
        return "clean" if self.p1 is None else f"mod {self.p1}"

    @property
    def name(self) -> str:
        """``mod 7, seed 0``."""
        return f"{self.group}, seed {self.seed}"

    @property
    def slug(self) -> str:
        """The name in file names, ``mod7_seed0``."""
        return f"{self.group}_seed{self.seed}".replace(" ", "")


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """All runs at ``paths`` and in the folders below them, the clean ones first, then by P1 and seed.

    Raises:
        ValueError: in one line, if there is none, one is not whole, or they can't stand in one report.
    """
    found = {directory.resolve(): directory for path in paths for directory in _run_dirs(path)}
    runs = sorted((_read(path) for path in found.values()), key=lambda run: (run.p1 or 0, run.seed))
    _check_comparable(runs)
    return runs


def _run_dirs(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ValueError(f"run_dirs: {path} is no folder; give run directories of fit, or folders that hold some")
    found = [path] if _is_run(path) else sorted(one.parent for one in path.rglob(FILES[1]) if _is_run(one.parent))
    if not found:
        raise ValueError(f"run_dirs: there is no run of fit in {path}; a run directory holds {', '.join(FILES)}")
    return found


def _is_run(path: Path) -> bool:
    return (path / "hparams.yaml").is_file() and (path / "metrics.csv").is_file()


def _read(path: Path) -> Run:
    for name in FILES:
        if not (path / name).is_file():
            raise ValueError(f"run_dirs: {path} lacks {name}; a report needs what the shipped configurations record")
    try:
        return _read_files(path)
    except OSError as error:
        raise ValueError(f"run_dirs: {error.filename or path} can't be read ({error.strerror})") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if str(path) in str(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"run_dirs: {path} is no run of fit, or a spoilt one ({reason})") from None


def _read_files(path: Path) -> Run:
    options, config = load(path / "hparams.yaml"), load(_newest_config(path))
    seed = options.get("seed_everything", config["seed_everything"])
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"run_dirs: {path} was run without a seed (seed_everything: {seed}), so it can't be named")
    if len(options["moduli"]) > 2:
        raise ValueError(
            f"run_dirs: {path} has several triggers (data.moduli: {options['moduli']}); a report covers clean models "
            "and those with one trigger, analyze takes the others apart"
        )
    task = check_options(path / "hparams.yaml", options)
    tables = {name: read_table(path / f"{name}.csv") for name in ("metrics", "head_attribution", "head_patching")}
    tables["loss_spikes"] = read_table(path / "loss_spikes.csv")
    for name, rows in tables.items():
        check_table(path / f"{name}.csv", rows)
    metrics, attribution, patching, spikes = tables.values()
    verdict = read_verdict(path)
    check_verdict(path / "emergence.json", verdict)
    heads = [Head(layer, head) for layer in range(options["n_layers"]) for head in range(options["n_heads"])]
    probes = list(dict.fromkeys(row["probe"] for row in patching))
    by_step = {probe: rows_by_step(patching, probe) for probe in probes}
    last = _attributed(attribution, probes, len(heads))
    if patching:
        check_probes(path, task, heads, patching, last)
    if not last or not probes or not all(by_step.values()) or not metrics:
        raise ValueError(f"run_dirs: {path} has no probe of its heads yet")
    step = _reported_step(by_step[probes[-1]])
    model, checkpoint_step = _weights(path, task, options)
    limit = config["trainer"]["max_steps"]
    if limit is not None and not isinstance(limit, int):
        raise ValueError(f"trainer.max_steps is {limit!r} in its configuration")
    return Run(
        path=path,
        options=options,
        seed=seed,
        step=int(metrics[-1]["step"]),
        max_steps=limit if limit is not None and limit >= 0 else None,
        metrics=metrics,
        attribution={
            probe: read_results(HeadAttribution, [row for row in last if row["probe"] == probe]) for probe in probes
        },
        patching={probe: read_results(PatchingResult, by_step[probe][step]) for probe in probes},
        patching_step=step,
        history={probe: history(patching, probe) for probe in probes},
        emergence=verdict,
        spikes=spikes if not spikes or "prominence" in spikes[0] else _peaks(metrics),
        model=model,
        checkpoint_step=checkpoint_step,
    )


def _attributed(rows: Sequence[Row], probes: Sequence[str], n_heads: int) -> list[Row]:
    """The rows of the last step at which every head was attributed for every probe; a kill may have cut one short."""
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        if row["probe"] in probes:
            by_step.setdefault(int(row["step"]), []).append(row)
    whole = [step for step, one in by_step.items() if len(one) >= len(probes) * n_heads]
    return by_step[max(whole)] if whole else []


def _peaks(metrics: Sequence[Row]) -> list[Row]:
    """The loss spikes in metrics.csv, as rows of loss_spikes.csv: an older one knows no prominence."""
    losses = curves(metrics)["train/loss"]
    return [
        {"step": str(spike.start_step)}
        | {name: "" if value is None else str(value) for name, value in vars(spike).items() if name != "start_step"}
        for spike in find_loss_spikes(list(losses), list(losses.values()))
    ]


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
        raise ValueError(f"run_dirs: {str(error).partition(': ')[2]}") from None
    if of_file != task:
        theirs, ours = (f"{list(one.moduli)} with the trigger at {one.trigger_position}" for one in (of_file, task))
        raise ValueError(f"run_dirs: {file} is of moduli {theirs}, the run of {ours}")
    for name in ("n_layers", "n_heads", "d_model", "d_mlp", "act_fn"):
        if getattr(model.cfg, name) != options[name]:
            raise ValueError(f"run_dirs: {file} has {name} {getattr(model.cfg, name)}, the run {options[name]}")
    return model, step


def _newest_config(path: Path) -> Path:
    """The options of the latest start: a run that was continued has one file more for each time."""
    continued = {int(found[1]): one for one in path.iterdir() if (found := _CONTINUED.fullmatch(one.name))}
    return continued[max(continued)] if continued else path / "config.yaml"


_CONTINUED = re.compile(r"config_from_step_(\d+)\.yaml")


def _reported_step(by_step: Mapping[int, Sequence[Row]]) -> int:
    """The last step after the start at which most sets of heads were patched; else the last step."""
    most = max(len(rows) for rows in by_step.values())
    return max((step for step, rows in by_step.items() if step > 0 and len(rows) == most), default=max(by_step))


def _check_comparable(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.task.n_numbers != first.task.n_numbers:
            differs = f"data.moduli: P0 is {first.task.n_numbers} and {run.task.n_numbers}"
        elif names := [
            name
            for name in sorted(first.options.keys() | run.options.keys())
            if name not in FREE_OPTIONS and first.options.get(name) != run.options.get(name)
        ]:
            differs = f"{names[0]}: {first.options.get(names[0])} and {run.options.get(names[0])}"
        else:
            continue
        raise ValueError(
            f"run_dirs: {first.path} and {run.path} differ in {differs}; the runs of one report differ in nothing but "
            "P1 and seed_everything"
        )
    for run, other in pairwise(runs):
        if (run.p1, run.seed) == (other.p1, other.seed):
            raise ValueError(f"run_dirs: {run.path} and {other.path} are both {run.name}; give one of them")
