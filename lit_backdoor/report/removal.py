"""Backdoors removed, as `analyze --removal` measured it: what is left, what it costs, and what patching foretells."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lit_backdoor.functional import Removal
from lit_backdoor.functional.ranks import head_order
from lit_backdoor.functional.seed_statistics import rank_correlation
from lit_backdoor.report.declared import declared
from lit_backdoor.runs.removed import RemovedModel
from lit_backdoor.runs.run import slug
from lit_backdoor.show.removal import removal_figure


def localisation_rows(models: Sequence[RemovedModel]) -> pd.DataFrame:
    """localisation.csv: how well what patching a head costs foretells what removing it does; a row per backdoor.

    A head is removed by its mean: `donor` of a head is the patch itself. Where some head was not removed so, or the
    model does not answer by the backdoor as declared (`min_accuracy`), there is no row. `rank_correlation` is
    Spearman's, over the heads, between what patching a head leaves of the backdoor and what removing it leaves: 1 if
    their order is the same; NaN where it is undefined.
    """
    rows: list[dict[str, Any]] = []
    for model in models:
        for backdoor, results in model.removals.items():
            removed = {Removal(each.method, each.target).heads: each for each in results if each.method == "mean"}
            patched = {each.heads: each.recipient_accuracy for each in model.patching[backdoor]}
            order = head_order(patched)
            if patched[()] < declared().min_accuracy or any((head,) not in removed for head in order):
                continue
            left = [removed[head,].backdoor_left for head in order]
            costliest, best = removed[order[0],], removed[order[left.index(min(left))],]
            row = {"model": model.name, "backdoor": backdoor, "n_heads": len(order)}
            for which, each in (("costliest", costliest), ("best", best)):
                row |= {which: each.target, f"{which}_left": each.backdoor_left}
                row |= {f"{which}_benign_lost": each.benign_lost}
            rows.append(row | {"rank_correlation": rank_correlation([patched[head,] for head in order], left)})
    return pd.DataFrame(rows)


def removal_figures(models: Sequence[RemovedModel]) -> dict[str, Figure]:
    """The figure of each model's removals, by name."""
    drawn = {}
    for model in models:
        floors = {backdoor: results[0].floor for backdoor, results in model.patching.items()}
        figure = removal_figure(model.removals, floors)
        figure.suptitle(model.name, x=0.01, ha="left", fontsize=11)
        drawn[f"removal_{slug(model.name)}"] = figure
    return drawn
