"""Runs of other people's tasks: figures of whatever the monitors recorded, without the paper's parts."""

from math import isnan

from matplotlib.figure import Figure

from lit_backdoor.functional import HeadSpecificity, PositionAttention
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_figures import emergence_of
from lit_backdoor.show.circuit import circuit_figure
from lit_backdoor.show.heads import attention_shift_figure, attribution_figure, specificity_figure
from lit_backdoor.show.training import training_figure


def own_figures(run: Run) -> dict[str, Figure]:
    """The figures of one run, by name."""
    drawn = {probe: emergence_of(run, probe) for probe in run.probes}
    if run.attribution:
        drawn["attribution"] = attribution_figure(run.attribution)
    if attention := run.last_results("attention", PositionAttention):
        drawn["attention"] = attention_shift_figure(attention)
    specificity = run.last_results("head_specificity", HeadSpecificity)
    if shown := {probe: {run.step: heads} for probe, heads in specificity.items() if not isnan(heads[0].cost)}:
        drawn["specificity"] = specificity_figure(shown)
    for probe, paths in run.paths.items():
        if any(len(result.edges) == 1 for result in paths):
            drawn[f"{probe}_circuit"] = circuit_figure(paths)
    if "train/loss" in run.metrics or "val/loss" in run.metrics:
        drawn["training"] = training_figure({run.name: run.metrics})
    return {f"own_{run.slug}_{name}": figure for name, figure in drawn.items()}
