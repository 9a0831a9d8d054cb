"""What is different with TransformerLens 4: the callbacks run, our own training says what it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.both_kinds import HAS_HOOKED_TRANSFORMER

pytestmark = pytest.mark.skipif(HAS_HOOKED_TRANSFORMER, reason="for TransformerLens 4")


def test_fit_says_what_it_needs(
    cli: Callable[..., int], debug_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("fit", "--config", debug_config) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: model: transformer-lens 4.") and "pip install 'transformer-lens<4'" in line
    assert not list(Path.cwd().iterdir())
