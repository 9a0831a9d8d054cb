"""What a run left behind, read without the package's own readers."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Cli = Callable[..., int]
"""The fixture `cli`: runs the command line and returns its exit code."""


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
