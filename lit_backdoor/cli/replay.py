"""``replay``: monitors over the weights that a run keeps, as if they had been there while it trained."""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from lit_backdoor.callbacks import ProbeCallback
from lit_backdoor.callbacks.monitor import MonitorCallback
from lit_backdoor.callbacks.recorder import recorded_step, replay
from lit_backdoor.cli.named_callbacks import NAMED_CALLBACKS, all_callbacks
from lit_backdoor.cli.parser import OneLineParser, checking_options, given_path
from lit_backdoor.datamodule import SPLIT_OPTIONS, BackdoorDataModule
from lit_backdoor.runs.directory import as_typed, require_new_or_empty, require_writable
from lit_backdoor.runs.file_names import CONFIG, METRICS, REPLAY_DIR, REPLAYED_MONITORS, WEIGHTS_DIR
from lit_backdoor.runs.stored import config_files
from lit_backdoor.runs.tables import curves, read_table, replace_file
from lit_backdoor.runs.weights import kept_weights, load_weights, read_weights, weights_digest
from lit_backdoor.task import Task

HELP = "Measure a finished run again: monitors over the weights that it keeps, in order."


def parser() -> ArgumentParser:
    """The options of ``replay``."""
    options = OneLineParser(description=HELP, prog="lit_backdoor replay")
    options.add_argument("run_dir", type=str, help="Directory of a run that was trained with WeightCheckpoint.")
    options.add_argument(
        "--config",
        type=str | None,
        help="YAML with the monitors, as a run's configuration lists them; null: its own, as last started.",
    )
    options.add_argument(
        "--output_dir", type=str | None, help=f"New folder, or one to go on with; null: RUN_DIR/{REPLAY_DIR}."
    )
    return options


def run(options: Namespace) -> int:
    """Replay; the same command goes on with what was stopped."""
    with checking_options():
        run_dir = given_path("run_dir", options.run_dir)
        output_dir = (
            run_dir / REPLAY_DIR if options.output_dir is None else given_path("output_dir", options.output_dir)
        )
        weights = kept_weights(run_dir)
        if not weights:
            raise ValueError(
                f"run_dir: {run_dir} keeps no {WEIGHTS_DIR}/step_*.safetensors, which replay needs; "
                "a run keeps them with the callback WeightCheckpoint"
            )
        own = [run_dir / CONFIG, *config_files(run_dir)][-1]  # of several starts, the last
        config = own if options.config is None else given_path("config", options.config)
        text = yaml.safe_dump(_chosen(_read_yaml(config), config), sort_keys=False)
        monitors = _instantiated(yaml.safe_load(text))
        _require_kept(monitors, weights, run_dir)
        stored = read_weights(next(iter(weights.values())))
        source = None if stored.task is None else _data_of(run_dir, stored.task, stored.split)
        for monitor in monitors:
            if isinstance(monitor, ProbeCallback) and monitor.clamped:
                raise ValueError(
                    f"{type(monitor).__name__}.clamped: replay measures without a clamp; give a --config that has "
                    "the monitor with clamped: false"
                )
            monitor.check_model(stored.model, source, monitors)
        metrics = curves(read_table(run_dir / METRICS))
        last = max(weights)
        record = _require_same_replay(output_dir, yaml.safe_load(text), weights)
        start = recorded_step(output_dir) or 0
    output_dir.mkdir(parents=True, exist_ok=True)
    replace_file(output_dir / REPLAYED_MONITORS, yaml.safe_dump(record, sort_keys=False))

    due = [
        step
        for step in weights
        if step >= start and (step == last or any(_is_due(monitor, step) for monitor in monitors))
    ]

    def models() -> Iterator[tuple[int, Any]]:
        for step in tqdm(due, desc="replay", unit="step", file=sys.stdout, disable=not sys.stdout.isatty()):
            load_weights(stored.model, weights[step])
            yield step, stored.model

    try:
        with checking_options():
            replay(models(), monitors, output_dir, metrics, source)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on with {as_typed(output_dir)}", file=sys.stderr)
        return 128 + signal.SIGINT
    print(f"{len(due)} steps, {due[0]} to {last}, into {as_typed(output_dir)}")
    return 0


def _data_of(run_dir: Path, task: Task, split: Mapping[str, Any] | None) -> BackdoorDataModule:
    """The data of a run, with the split that its weights name.

    Raises:
        ValueError: they name none, or it is no split.
    """
    if split is None:
        raise ValueError(f"run_dir: the weights in {run_dir / WEIGHTS_DIR} do not say which examples trained")
    options: dict[str, Any] = {option: split[name] for option, name in SPLIT_OPTIONS.items() if name in split}
    position: Any = task.trigger_position  # 0, 1 or 2, as the task has checked
    return BackdoorDataModule(list(task.moduli), position, trigger_tokens=list(task.trigger_tokens), **options)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"config: {path} is not a file; give YAML that lists monitors") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"config: {path} can't be read as YAML ({' '.join(str(error).split())[:200]})") from None


def _chosen(config: Any, path: Path) -> dict[str, Any]:
    """What a configuration says about monitors: the named ones, and those that it lists.

    Raises:
        ValueError: if there is none that measures weights.
    """
    config = config if isinstance(config, Mapping) else {}
    trainer = config.get("trainer")
    listed = config.get("callbacks") or (trainer.get("callbacks") if isinstance(trainer, Mapping) else None) or []
    named = config.get("monitors") or {}
    if not isinstance(named, Mapping) or not isinstance(listed, Sequence):
        raise ValueError(f"config: {path} has no mapping of monitors, and no list of callbacks")
    if unknown := [name for name in named if f"monitors.{name}" not in NAMED_CALLBACKS]:
        allowed = ", ".join(name.removeprefix("monitors.") for name in NAMED_CALLBACKS if name.startswith("monitors."))
        raise ValueError(f"config: monitors.{unknown[0]} is no monitor; allowed: {allowed}")
    choice = {
        "monitors": {
            name: options
            for name, options in named.items()
            if options is not None and issubclass(NAMED_CALLBACKS[f"monitors.{name}"], MonitorCallback)
        },
        "callbacks": [entry for entry in listed if _is_monitor(entry)],
    }
    if not choice["monitors"] and not choice["callbacks"]:
        raise ValueError(f"config: {path} names no monitor that measures weights, such as HeadPatchingMonitor")
    return choice


def _is_monitor(entry: Any) -> bool:
    """Whether an entry of a list of callbacks is one; what can't be imported is left to the parser to refuse."""
    path = entry.get("class_path") if isinstance(entry, Mapping) else entry
    module, _, name = str(path).rpartition(".")
    try:
        kind = getattr(import_module(module or "lit_backdoor.callbacks"), name)
    except (ImportError, AttributeError, ValueError):
        return True
    return isinstance(kind, type) and issubclass(kind, MonitorCallback)


def _instantiated(choice: Mapping[str, Any]) -> list[MonitorCallback]:
    """The monitors. Exits with 2 if an option is wrong."""
    options = OneLineParser(prog="lit_backdoor replay")
    for name in choice["monitors"]:
        options.add_class_arguments(
            NAMED_CALLBACKS[f"monitors.{name}"], f"monitors.{name}", fail_untyped=False, instantiate=False,
            sub_configs=True,
        )  # fmt: skip
    options.add_argument("--callbacks", type=list[MonitorCallback], default=[])
    parsed = options.instantiate_classes(options.parse_object(dict(choice)))
    return [
        monitor for monitor in all_callbacks(parsed, parsed["callbacks"], []) if isinstance(monitor, MonitorCallback)
    ]


def _is_due(monitor: MonitorCallback, step: int) -> bool:
    return isinstance(monitor, ProbeCallback) and monitor.is_due(step)


def _require_kept(monitors: Sequence[MonitorCallback], weights: Mapping[int, Path], run_dir: Path) -> None:
    """Raise ``ValueError`` unless there are weights of every step that a monitor measures, from the first kept on.

    A branch keeps its own alone.
    """
    first, last = min(weights), max(weights)
    for monitor in monitors:
        if missing := [step for step in range(first, last) if _is_due(monitor, step) and step not in weights]:
            raise ValueError(
                f"{type(monitor).__name__}: it measures step {missing[0]}, of which {run_dir} keeps no weights (it "
                f"keeps {len(weights)} steps from {first} to {last}); set every_n_steps and dense_until in a "
                "--config to steps that are there"
            )


def _require_same_replay(output_dir: Path, choice: Mapping[str, Any], weights: Mapping[int, Path]) -> dict[str, Any]:
    """Make sure that ``output_dir`` is new or empty, or holds a replay of the same monitors over the same run.

    A run is known by its last weights as the replay began: runs of one seed have the first in common.

    Returns:
        What :data:`REPLAYED_MONITORS` is to say: the chosen monitors, a step, and the digest of its weights.

    Raises:
        ValueError: the folder holds something else.
    """
    path = output_dir / REPLAYED_MONITORS
    if not path.exists():
        require_new_or_empty(output_dir)
        return _record(choice, weights, max(weights))
    require_writable(output_dir)
    begun = _read_yaml(path)
    if not isinstance(begun, dict) or {name: begun.get(name) for name in choice} != choice:
        raise ValueError(
            f"output_dir: {output_dir} is a replay of other monitors; nothing is overwritten, choose another"
        )
    step = begun.get("step")
    if step not in list(weights) or begun != _record(choice, weights, step):
        raise ValueError(f"output_dir: {output_dir} is a replay of another run; nothing is overwritten, choose another")
    return begun


def _record(choice: Mapping[str, Any], weights: Mapping[int, Path], step: int) -> dict[str, Any]:
    return {**choice, "step": step, "sha256": weights_digest(read_weights(weights[step]).model)}
