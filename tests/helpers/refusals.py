"""How every wrong input ends, and what must never be run."""

import os
from pathlib import Path

import pytest

from tests.helpers.runs import Cli


class Burglar:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("broken_into",)


def assert_refused(cli: Cli, capsys: pytest.CaptureFixture[str], args: tuple[object, ...], *words: str) -> None:
    """One line on stderr with these words, exit code 2, and no file written."""
    before = sorted(Path().rglob("*"))
    assert cli(*args) == 2
    assert sorted(Path().rglob("*")) == before
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    for word in words:
        assert word in error[-1], error[-1]
    assert error[-1].startswith("error: ") and "Traceback" not in error[-1]
