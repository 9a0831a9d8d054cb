from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from .copying import CopyData, CopyModule
from .models import KINDS

Fit = Callable[..., CopyModule]
Rows = Callable[[str], list[dict[str, str]]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What Lightning says about small data is not about us."""
    for item in (item for item in items if item.path.parent == Path(__file__).parent):
        item.add_marker(pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"))
        item.add_marker(pytest.mark.filterwarnings("ignore:The number of training batches"))


def train(
    folder: Path, *callbacks: Callback, datamodule: Any = None, kind: str = KINDS[0], **options: Any
) -> CopyModule:
    """Train a `CopyModule` with some callbacks, in `folder` unless `default_root_dir` says otherwise."""
    module_options = {name: options.pop(name) for name in ("lr", "optimizer") if name in options}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    torch.manual_seed(0)
    module = CopyModule(kind, **module_options)
    settings = {"default_root_dir": folder, "max_steps": 6, "logger": False, "accelerator": "cpu", **options}
    trainer = Trainer(**quiet, callbacks=list(callbacks), **settings)
    trainer.fit(module, datamodule or CopyData())
    return module


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """`train` in the test's folder."""
    return functools.partial(train, tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """The rows of a table in the test's folder."""
    return lambda name: read_rows(tmp_path / name)
