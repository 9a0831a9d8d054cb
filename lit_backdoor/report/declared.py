"""What was declared before the runs: endpoint, margins, thresholds and family of tests, as declared.yaml has them."""

from dataclasses import replace
from functools import cache
from importlib.resources import files
from types import SimpleNamespace

import yaml

from lit_backdoor.runs.run import Run
from lit_backdoor.runs.verdict import verdict_anew

FILE = "declared.yaml"


def declared_text() -> str:
    """The file as it is, for the report to show."""
    return (files("lit_backdoor.report") / FILE).read_text(encoding="utf-8")


@cache
def declared() -> SimpleNamespace:
    """What the file says, by the names that it explains."""
    return SimpleNamespace(**yaml.safe_load(declared_text()))


def judged_as_declared(run: Run) -> Run:
    """The run with a verdict by the declared thresholds: the same, or one worked out anew where its own had others."""
    wanted = {"probe": "backdoor", "threshold": declared().threshold, "min_accuracy": declared().min_accuracy}
    if run.p1 is None or all(run.emergence.get(name, value) == value for name, value in wanted.items()):
        return run
    return replace(run, emergence=verdict_anew(run.path, **wanted))
