"""What a run left behind, read without the package's own readers."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tests.helpers import CONFIGS, QUIET

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Cli = Callable[..., int]
"""The fixture `cli`: runs the command line and returns its exit code."""


def train_run(run_dir: Path, *options: str, config: Path = CONFIGS / "debug.yaml") -> Path:
    """Train into that run directory, for runs that several tests share; returns it."""
    from lit_backdoor.cli.main import main

    place = {"save_dir": run_dir.parent.parent, "name": run_dir.parent.name, "version": run_dir.name}
    where = [f"--trainer.logger.init_args.{key}={value}" for key, value in place.items()]
    assert main(["fit", "--config", str(config), *options, *QUIET, *where]) == 0
    return run_dir


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open() as file:
        return list(csv.DictReader(file))


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    return read_rows(run / "metrics.csv")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, but for locks, which stay when their process ends."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def times(folder: Path) -> dict[str, int]:
    """When each file in a folder was written last."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_same_weights(checkpoint: Path, other: Path) -> None:
    """Bit for bit."""
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in (checkpoint, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def assert_same_results(run: Path, other: Path) -> None:
    """The same points in TensorBoard too."""
    assert_same_files(run, other)
    assert scalars(run) == scalars(other)


def assert_same_files(run: Path, other: Path) -> None:
    """The same tables and verdict byte for byte, and weights bit for bit."""
    names = {path.name for path in [*run.glob("*.csv"), *run.glob("emergence*.json")]}
    assert {"metrics.csv", "head_attribution.csv", "head_patching.csv", "emergence.json"} <= names
    for name in sorted(names):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert_same_weights(*(directory / "checkpoints" / "last.ckpt" for directory in (run, other)))


def read_events(run: Path) -> "EventAccumulator":
    """What TensorBoard reads of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    events.Reload()
    return events


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of every curve that TensorBoard shows of a run."""
    events = read_events(run)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
