"""Reading run directories, whole or still growing, ours or of other tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lit_backdoor.functional import Head
from lit_backdoor.runs.branch import read_branch
from lit_backdoor.runs.checkpoints import StoredModel, load_model
from lit_backdoor.runs.checks import check_columns, check_heads, check_options, check_patching, check_verdict
from lit_backdoor.runs.directory import has_results
from lit_backdoor.runs.file_names import (
    CHECKPOINT_DIR,
    EMERGENCE,
    HEAD_PATCHING,
    HPARAMS,
    LAST,
    METRICS,
    REMOVAL,
    SHIPPED_WEIGHTS,
    SUMMARY,
    WEIGHTS,
)
from lit_backdoor.runs.frames import read_run
from lit_backdoor.runs.run import NO_ROWS, OF_HEADS, Run, last_whole_step
from lit_backdoor.runs.stored import config_files, load
from lit_backdoor.runs.tables import rows_by_step
from lit_backdoor.runs.verdict import read_verdict
from lit_backdoor.runs.weights import read_weights
from lit_backdoor.task import Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FILES = (HPARAMS, METRICS, HEAD_PATCHING, EMERGENCE)
"""What a run of `fit` holds. Everything else is read where it is there."""


OpenShipped = Callable[[str], StoredModel]

OF_OUR_TASK = ("metrics", "loss_spikes", "neurons", "progress_measures")
"""Further tables that are read of a run of our own task, without ``.csv``."""


class JustStarted(Exception):
    """A run lacks something that a report needs, and has not trained long enough to have it."""


def read_runs(
    paths: Sequence[Path], open_shipped: OpenShipped, pass_over: Callable[[Path], object] = lambda path: None
) -> list[Run]:
    """All runs at `paths` and in the folders below them, the clean ones first, then by P1, seed and split.

    Args:
        paths: run directories, or folders that hold some at any depth.
        open_shipped: opens a model that ships, by its name: a run may name one instead of keeping its weights.
        pass_over: is told of each run that is left out because it has just started.

    Raises:
        ValueError: in one line, if there is none, or one is not whole.
    """
    directories = {directory.resolve(): directory for path in paths for directory in _run_dirs(path)}
    runs: list[Run] = []
    for path in directories.values():
        try:
            with naming(path):
                runs.append(_read_files(path, open_shipped))
        except JustStarted:
            pass_over(path)
    if directories and not runs:
        raise ValueError(f"run_dirs: {' '.join(map(str, paths))} holds only runs that have just started; try later")
    return sorted(runs, key=lambda run: (run.p1 or 0, run.seed or 0, run.split, run.path.name))


def removal_dirs(path: Path) -> list[Path]:
    """The folders at or below `path`, inside of runs too, into which `analyze --removal` has written."""
    return [folder for folder in _folders(path) if (folder / REMOVAL).is_file()]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say in one line, as a `ValueError`, which folder can't be read, and why."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"run_dirs: {error.filename or path} can't be read ({error.strerror})") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise ValueError(f"run_dirs: {str(error).removeprefix('run_dirs: ')}") from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"run_dirs: {path} is no run of fit, or a spoilt one ({reason})") from None


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ValueError(f"run_dirs: {path} is no folder; give run directories of fit, or folders that hold some")
    return [path, *sorted(folder for folder in path.rglob("*") if folder.is_dir())]


def _run_dirs(path: Path) -> list[Path]:
    """The run directories at or below `path`; what lies inside one, such as a replay, is no other run."""
    runs: list[Path] = []
    for folder in _folders(path):
        if _is_run(folder) and not any(folder.is_relative_to(run) for run in runs):
            runs.append(folder)
    if not runs and not removal_dirs(path):
        raise ValueError(f"run_dirs: there is no run of fit in {path}; a run directory holds {', '.join(FILES)}")
    return runs


def _is_run(path: Path) -> bool:
    """Whether `fit` has written here, or monitors in another loop; `analyze` leaves the same tables, and says so."""
    measured = any((path / f"{name}.csv").is_file() for name in OF_HEADS) and not (path / SUMMARY).is_file()
    return measured or ((path / METRICS).is_file() and (path / HPARAMS).is_file())


def _read_files(path: Path, open_shipped: OpenShipped) -> Run:
    options = load(path / HPARAMS) if (path / HPARAMS).exists() else {}
    ours = {"moduli", "trigger_position"} <= options.keys()
    for name in FILES if ours else ():
        if not (path / name).is_file():
            raise _unready(path, f"lacks {name}; a report needs what the shipped configurations record")
    task = check_options(path / HPARAMS, options) if ours else None
    if task is not None and len(task.moduli) > 2:
        task = None  # with several triggers there is no table of the paper's: reported as other people's tasks are
    configs = [load(file) for file in config_files(path)] or [{}]
    first, config = configs[0], configs[-1]
    seed = options.get("seed_everything", config.get("seed_everything"))
    is_seed = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    if task is not None and not is_seed:
        raise ValueError(f"{path} was run without a seed (seed_everything: {seed}), so it can't be named")
    if clamps := [each["clamp"] for each in configs if each.get("clamp")]:
        options["clamp"] = clamps[-1]  # it changes what is trained, whenever it was given
    limit = config.get("trainer", {}).get("max_steps")
    if limit is not None and not isinstance(limit, int):
        raise ValueError(f"trainer.max_steps is {limit!r} in its configuration")
    tables = read_run(path)
    if not any(name in tables for name in OF_HEADS):
        raise ValueError(f"{path} has no table of heads, which monitors write: {', '.join(OF_HEADS)}")
    tables = {"head_attribution": NO_ROWS, "head_patching": NO_ROWS} | tables
    _check_tables(path, task, options, tables)
    verdict: Any = {}
    if (path / EMERGENCE).exists():
        verdict = read_verdict(path)
        check_verdict(path / EMERGENCE, verdict)
    model, step = _weights(path, task, options, open_shipped) if task is not None else (None, None)
    seed, parent = seed if is_seed else None, _parent(path, first)
    branched_at = None if parent is None else _branched_at(path, parent)
    return Run(path, options, config, task, seed, tables, verdict, parent, branched_at, model, step)


def _check_tables(
    path: Path, task: Task | None, options: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]
) -> None:
    patching, attribution = tables["head_patching"], tables["head_attribution"]
    for name in (*OF_HEADS, *(OF_OUR_TASK if task else ())):
        check_columns(path / f"{name}.csv", tables.get(name, pd.DataFrame()))
    if len(patching):
        check_patching(path / HEAD_PATCHING, patching)
    if task is not None and len(patching):
        heads = [Head(layer, head) for layer in range(options["n_layers"]) for head in range(options["n_heads"])]
        check_heads(path, task, heads, patching, last_whole_step(attribution))
    rows, needed = patching.to_dict("records"), [patching, tables["metrics"]] if task else []
    measured = all(map(len, needed)) and all(rows_by_step(rows, probe) for probe in patching["probe"].unique())
    measured = measured and any(len(tables.get(name, ())) for name in OF_HEADS)
    if not measured:
        raise _unready(path, "has no probe of its heads yet")


def _unready(path: Path, what: str) -> Exception:
    """What to raise of a run that lacks something: it may have, while nothing is recorded of a later step than 0."""
    if any(has_results(path / name) for name in (METRICS, HEAD_PATCHING)):
        return ValueError(f"{path} {what}")
    return JustStarted(f"{path} {what}")


def _parent(path: Path, config: Mapping[str, Any]) -> Path | None:
    """The checkpoint that the first start of a run began from, if that is another run's."""
    checkpoint = config.get("ckpt_path")
    if not isinstance(checkpoint, str):
        return None
    own = (path / CHECKPOINT_DIR).resolve() == Path(checkpoint).resolve().parent
    return None if own else Path(checkpoint)


def _branched_at(path: Path, checkpoint: Path) -> int | None:
    """The step of a branch's first checkpoint, as the branch says it, else as the checkpoint is called."""
    branch = read_branch(path)
    return _step_in_name(checkpoint) if branch is None else branch.step


def _step_in_name(path: Path) -> int | None:
    """The step that a checkpoint is called after."""
    number = path.stem.rpartition("_")[2]
    return int(number) if number.isdecimal() else None


def _weights(
    path: Path, task: Task, options: Mapping[str, Any], open_shipped: OpenShipped
) -> "tuple[HookedTransformer, int | None] | tuple[None, None]":
    """The model of the last checkpoint, or where checkpoints were thrown away, of the weights kept in their place."""
    file = path / CHECKPOINT_DIR / LAST
    try:
        if file.exists():
            stored = load_model(file)
        elif (file := path / WEIGHTS).exists():
            stored = read_weights(file)
        elif (file := path / SHIPPED_WEIGHTS).exists():
            stored = open_shipped(load(file)["pretrained"])
        else:
            return None, None
        if stored.task is None:
            raise ValueError(f"weights: {file} does not say what it was trained on")
    except ValueError as error:  # which names the option of other commands
        raise ValueError(f"{path}: {str(error).partition(': ')[2]}") from None
    model, of_file = stored.model, stored.task
    if of_file != task:
        theirs, ours = (f"{list(each.moduli)} with the trigger at {each.trigger_position}" for each in (of_file, task))
        raise ValueError(f"{file} is of moduli {theirs}, the run of {ours}")
    for name in ("n_layers", "n_heads", "d_model", "d_mlp", "act_fn"):
        if getattr(model.cfg, name) != options[name]:
            raise ValueError(f"{file} has {name} {getattr(model.cfg, name)}, the run {options[name]}")
    return model, stored.step
