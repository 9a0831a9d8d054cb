"""What was declared before the runs: endpoint, margins, thresholds and family of tests, as declared.yaml has them."""

from functools import cache
from importlib.resources import files
from types import SimpleNamespace

import yaml

FILE = "declared.yaml"


def declared_text() -> str:
    """The file as it is, for the report to show."""
    return (files("lit_backdoor.report") / FILE).read_text(encoding="utf-8")


@cache
def declared() -> SimpleNamespace:
    """What the file says, by the names that it explains."""
    return SimpleNamespace(**yaml.safe_load(declared_text()))
