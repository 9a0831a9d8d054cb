"""The paper's Figures 2 and 4 to 8: what the heads write."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from lit_backdoor.report.runs import Run
from lit_backdoor.show.heads import attribution_figure

EXPERIMENTS = {5: (0, 1), 6: (1, 4), 7: (4, 7), 8: (7, 10)}
"""Which of ten experiments each figure shows, from and to (excluded)."""


def first_seeds(runs: Sequence[Run]) -> list[Run]:
    """The run with the lowest seed of each group, the clean one first."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.group, run)
    return list(first.values())


def attribution_by_model(runs: Sequence[Run], probe: str) -> Figure:
    """Figures 2 and 4: contributions of the heads to one rule's logits, a column per model."""
    return attribution_figure({run.name: run.attribution[probe] for run in first_seeds(runs)})


def figures_5_to_8(group: Sequence[Run]) -> dict[int, Figure]:
    """The same for the first ten runs of one group, spread over the paper's figures."""
    titled = [(f"Experiment {n}: {run.name}", run.attribution["backdoor"]) for n, run in enumerate(group, start=1)]
    return {n: attribution_figure(dict(titled[a:b])) for n, (a, b) in EXPERIMENTS.items() if titled[a:b]}
