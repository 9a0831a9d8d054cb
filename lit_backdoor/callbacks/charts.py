"""Which curves share a chart in TensorBoard's custom scalars."""

import re
from typing import Protocol, runtime_checkable

from lightning.pytorch import Callback, Trainer

from lit_backdoor.callbacks.run import tensorboards

Charts = dict[str, dict[str, list[str]]]
"""Category to chart to patterns: a chart shows every scalar whose tag begins with a match of one of its patterns."""


@runtime_checkable
class HasCharts(Protocol):
    """A LightningModule or callback with charts of its own."""

    def custom_scalars(self) -> Charts:
        """The charts, asked for as training starts."""


def curves(*parts: str) -> list[str]:
    """The pattern of every scalar below ``parts``: ``curves("patching_x", "kl")`` matches ``patching_x/kl/L0H0``."""
    return ["/".join(map(re.escape, parts)) + "/"]


def lay_out_charts(trainer: Trainer, writer: Callback) -> None:
    """Write the charts of the LightningModule and all callbacks, if ``writer`` is the first callback that has any.

    TensorBoard shows one layout for a run, so one callback writes it for all.
    """
    callbacks = [one for one in trainer.callbacks if isinstance(one, HasCharts)]  # type: ignore[attr-defined]
    if writer is not callbacks[0]:
        return
    module = trainer.lightning_module
    charts: Charts = {}
    for source in [module, *callbacks] if isinstance(module, HasCharts) else callbacks:
        for category, by_title in source.custom_scalars().items():
            charts.setdefault(category, {}).update(by_title)
    layout = {
        category: {title: ["Multiline", patterns] for title, patterns in by_title.items()}
        for category, by_title in charts.items()
    }
    for board in tensorboards(trainer):
        board.add_custom_scalars(layout)
