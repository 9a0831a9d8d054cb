"""Which curves share a chart in TensorBoard's custom scalars."""

import re
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

Charts = dict[str, dict[str, list[str]]]
"""Category to chart to patterns: a chart shows every scalar whose tag begins with a match of one of its patterns."""


@runtime_checkable
class HasCharts(Protocol):
    """A LightningModule or callback with charts of its own."""

    def custom_scalars(self) -> Charts:
        """The charts, asked for as training starts."""


def curve_patterns(*parts: str) -> list[str]:
    """Return the pattern of every scalar below ``parts``.

    >>> curve_patterns("patching_x", "kl")  # matches patching_x/kl/L0H0
    ['patching_x/kl/']
    """
    return ["/".join(map(re.escape, parts)) + "/"]


def all_charts(sources: Iterable[object]) -> Charts:
    """The charts of all that have some, together: TensorBoard shows one layout for a run."""
    charts: Charts = {}
    for source in sources:
        if isinstance(source, HasCharts):
            for category, by_title in source.custom_scalars().items():
                charts.setdefault(category, {}).update(by_title)
    return charts
