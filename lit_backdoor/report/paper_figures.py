"""The paper's Figures 2 to 8, in its form."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lit_backdoor.functional import HeadAttribution
from lit_backdoor.report.runs import Run
from lit_backdoor.show.heads import draw_attribution

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
    return _attributions([{run.name: run.attribution[probe] for run in first_seeds(runs)}])


def figures_5_to_8(group: Sequence[Run]) -> dict[int, Figure]:
    """The same for the first ten runs of one group: two rows for each experiment, spread over the paper's figures."""
    titled = [{f"Experiment {n}: {run.name}": run.attribution["backdoor"]} for n, run in enumerate(group, start=1)]
    parts = {number: titled[start:end] for number, (start, end) in EXPERIMENTS.items()}
    return {number: _attributions(experiments) for number, experiments in parts.items() if experiments}


def _attributions(experiments: Sequence[Mapping[str, Sequence[HeadAttribution]]]) -> Figure:
    """Two rows for each experiment, a column for each of its models."""
    n_columns = len(experiments[0])
    figure = Figure(figsize=(3.1 * n_columns + 0.7, 4.6 * len(experiments)), layout="constrained")
    axes = figure.subplots(2 * len(experiments), n_columns, squeeze=False)
    for index, experiment in enumerate(experiments):
        for position, (title, heads) in enumerate(experiment.items()):
            top, contribution = axes[2 * index, position], axes[2 * index + 1, position]
            draw_attribution(top, contribution, heads)
            top.set_title(title, fontsize=11)
            if position > 0:
                top.set_ylabel("")
                contribution.set_ylabel("")
    return figure
