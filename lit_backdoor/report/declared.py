"""What was declared before the runs: endpoint, margins, thresholds and family of tests, as declared.yaml has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

import yaml

FILE = "declared.yaml"


@dataclass(frozen=True)
class Declared:
    """The fields of declared.yaml, which says what each is for."""

    primary_endpoint: str
    margin_logits: float
    closest_to_0_and_1: float
    min_seeds: int
    threshold: float
    min_accuracy: float
    margin_rate: float
    thresholds: Sequence[float]
    family: Sequence[str]
    alpha: float
    necessary: float
    sufficient: float
    specific: float
    prominences: Sequence[float]
    states: Mapping[str, str]
    censoring: str


def declared_text() -> str:
    """The file as it is, for the report to show."""
    return (files("lit_backdoor.report") / FILE).read_text(encoding="utf-8")


@cache
def declared() -> Declared:
    """What the file says."""
    values = yaml.safe_load(declared_text())
    return Declared(**{field.name: values[field.name] for field in fields(Declared)})
