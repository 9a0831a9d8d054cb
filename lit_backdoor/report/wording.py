"""Numbers as the report prints them."""

import math
from collections.abc import Sequence

from lit_backdoor.report.seed_statistics import summarise

NOTHING = "\N{EN DASH}"
"""What stands where there is no number."""


class Highlighted(str):
    """A table cell to point out."""


def percent(share: float) -> str:
    """``2.75%``, or ``NOTHING``."""
    return NOTHING if math.isnan(share) else f"{share:.2%}"


def whole_percent(share: float) -> str:
    """``44%``, or ``NOTHING``."""
    return NOTHING if math.isnan(share) else f"{share:.0%}"


def number(value: float | None, digits: int = 2) -> str:
    """``1.15``, ``20,000`` without digits, or ``NOTHING``."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:,.0f}" if digits == 0 else f"{value:.{digits}f}"


def mean_percent(values: Sequence[float]) -> str:
    """Mean and 95% interval of shares: ``20.4% [9.2, 31.6]``."""
    ours = summarise(values)
    if math.isnan(ours.low):
        return percent(ours.mean)
    return f"{ours.mean:.1%} [{100 * ours.low:.1f}, {100 * ours.high:.1f}]"


def range_of(values: Sequence[float], digits: int = 2) -> str:
    """Smallest to largest."""
    ends = dict.fromkeys(number(end, digits) for end in (min(values), max(values))) if values else [NOTHING]
    return " to ".join(ends)


def percent_span(values: Sequence[float]) -> str:
    """Smallest to largest, as percentages."""
    return " to ".join(dict.fromkeys(percent(end) for end in (min(values), max(values)))) if values else NOTHING


def plural(n: int, noun: str = "seed") -> str:
    """``10 seeds``."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def count(k: int, n: int, noun: str = "seed") -> str:
    """``3 of 10 seeds``."""
    return f"{k} of {plural(n, noun)}"


def enumerate_words(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
