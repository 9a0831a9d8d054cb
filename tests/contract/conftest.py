from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.copy_task import CopyModule, train
from tests.helpers.runs import read_rows

Fit = Callable[..., CopyModule]
Rows = Callable[[str], list[dict[str, str]]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What Lightning says about small data is not about us."""
    for item in (item for item in items if item.path.parent == Path(__file__).parent):
        item.add_marker(pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"))
        item.add_marker(pytest.mark.filterwarnings("ignore:The number of training batches"))


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """`train` in the test's folder."""
    return functools.partial(train, tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """The rows of a table in the test's folder."""
    return lambda name: read_rows(tmp_path / name)
