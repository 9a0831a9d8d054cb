"""What is said of runs, and how it prints numbers and lists of words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd

from lit_backdoor.functional.seed_statistics import Interval, Verdict, wilson

NOTHING = "\N{EN DASH}"
"""What stands where there is no number."""


@dataclass(frozen=True)
class Statement:
    """Something said of the runs.

    Attributes:
        title: what it is about.
        headline: the answer in one sentence.
        text: the numbers behind it, and the rule.
        verdict: beside the paper; None where the paper says nothing, or nothing that can be judged.
    """

    title: str
    headline: str
    text: str
    verdict: Verdict | None = None


def percent(share: float | None, digits: int = 2) -> str:
    """`2.75%`, or `NOTHING`."""
    return NOTHING if pd.isna(share) else f"{share:.{digits}%}"


def number(value: Any, digits: int = 2) -> str:
    """`1.15`, `20,000` without digits, or `NOTHING`."""
    return NOTHING if pd.isna(value) else f"{value:,.{digits}f}"


def percent_span(values: Sequence[float], digits: int = 1) -> str:
    """Median, and from smallest to largest: `13.8% [1.3 to 20.6]`."""
    known = [value for value in values if not math.isnan(value)]
    if len(set(known)) < 2:
        return percent(known[0] if known else None, digits)
    return f"{median(known):.{digits}%} [{100 * min(known):.{digits}f} to {100 * max(known):.{digits}f}]"


def number_span(values: Sequence[float], digits: int = 2) -> str:
    """Median, and from smallest to largest: `12 [3 to 40]`."""
    known = [value for value in values if not pd.isna(value)]
    middle = number(median(known) if known else None, digits)
    return middle if len(set(known)) < 2 else f"{middle} [{span(known, digits)}]"


def span(values: Sequence[float], digits: int = 0, unit: float = 1) -> str:
    """From smallest to largest; with `unit` 100, in percent."""
    known = [unit * value for value in values if not pd.isna(value)]
    ends = dict.fromkeys(number(end, digits) for end in (min(known), max(known))) if known else [NOTHING]
    return " to ".join(ends)


def interval(value: Interval, digits: int = 2, unit: float = 1) -> str:
    """`1.62 [0.49, 2.42]`; with `unit` 100, in percentage points."""
    if math.isnan(value.low):
        return number(unit * value.value, digits)
    return f"{unit * value.value:.{digits}f} [{unit * value.low:.{digits}f}, {unit * value.high:.{digits}f}]"


def plural(n: int, noun: str = "run") -> str:
    """`10 runs`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def count(k: int, n: int, noun: str = "run") -> str:
    """`3 of 10 runs`."""
    return f"{k} of {plural(n, noun)}"


def not_counted(n: int) -> str:
    """So many runs are left out of what is said of a backdoor; empty if none is."""
    return f"Not counted, as they do not have the backdoor: {plural(n)}." if n else ""


def rate(k: int, n: int) -> str:
    """`3 of 10 [11%, 60%]`, with Wilson's interval."""
    interval = wilson(k, n)
    return f"{k} of {n} [{percent(interval.low, 0)}, {percent(interval.high, 0)}]"


def runs_of(state: str, n: int) -> str:
    """`all 10`, or `fitted (3)`."""
    return f"all {n}" if state == "all" else f"{state} ({n})"


def heading(name: str) -> str:
    """A group's name where a sentence begins."""
    return name[:1].upper() + name[1:]


def enumerate_words(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
