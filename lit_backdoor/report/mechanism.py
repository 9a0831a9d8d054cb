"""How the trigger acts, over runs: neurons; and by rank of head, attention, norms and gradients.

All of it is read from the last whole step of the monitors' tables; runs without a table have no numbers. A model that
does not have the backdoor has no way in which the trigger acts, and no rows.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lit_backdoor.functional import Head, HeadProgress, PositionAttention, head_name
from lit_backdoor.report.measures import label, triggered, with_backdoor
from lit_backdoor.report.page import Markdown, table
from lit_backdoor.runs.run import NO_ROWS, Run, last_whole_step
from lit_backdoor.show.wording import NOTHING, count, not_counted, number_span, percent_span

COUNTS = ("n_neurons", "needed", "sufficient", "overlap", "overlap_by_chance")
OF_HEAD = {
    "attention": ("attention to the trigger", percent_span),
    "shift": ("its shift, points", lambda values: number_span([100 * value for value in values], 1)),
    "qk_norm": ("QK norm", number_span),
    "ov_norm": ("OV norm", number_span),
    "gradient_share": ("share of the gradient", percent_span),
}
"""What is said of each head by its rank: the words, and how numbers over runs are printed."""


def neuron_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """neurons.csv: how many neurons the backdoor needs, how many suffice, and how many the benign rule needs too."""
    rows = []
    for run in with_backdoor(runs):
        last = last_whole_step(run.tables.get("neurons", NO_ROWS))
        for counts in last[last["probe"] == "backdoor"].to_dict("records"):
            rows.append(label(run) | {name: counts[name] for name in COUNTS} | {"step": counts["step"]})
    return pd.DataFrame(rows)


def mechanism_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """mechanism.csv: of each head by rank, where it looks, its norms, and how hard the backdoor's examples pull at it.

    `attention`: to the trigger's position in the triggered run; `shift`: that minus the same in the benign run;
    `gradient_share`: of the backdoor's examples, in the gradient of all rules on the head.
    """
    rows = []
    for run in with_backdoor(runs):
        attention = run.last_results("attention", PositionAttention).get("backdoor", [])
        progress = run.last_results("progress_measures", HeadProgress).get("backdoor", [])
        trigger = run.task.trigger_position if run.task is not None else None
        of_head: dict[Head, dict[str, Any]] = {each.head: vars(each) for each in attention if each.position == trigger}
        for each in progress:
            of_head[each.head] = of_head.get(each.head, {}) | vars(each)
        for rank, head in enumerate(run.order, start=1):
            if head in of_head:
                numbers = {name: of_head[head].get(name, math.nan) for name in OF_HEAD}
                rows.append(label(run) | {"head": head_name(*head), "rank": rank} | numbers)
    return pd.DataFrame(rows)


def left_out(runs: Sequence[Run]) -> str:
    """How many runs are in neither table, as they do not have the backdoor; empty if all have it."""
    return not_counted(len(triggered(runs)) - len(with_backdoor(runs)))


def neurons_by_group(neurons: pd.DataFrame) -> Markdown:
    """A row per group: median and range over its runs."""
    rows = []
    for name, runs in neurons.groupby("group", sort=False):
        needed, sufficient = (_known(runs[column]) for column in ("needed", "sufficient"))
        overlaps = (percent_span(runs[column].tolist()) for column in ("overlap", "overlap_by_chance"))
        rows.append([name, len(runs), number_span(runs["n_neurons"].tolist(), 0), needed, sufficient, *overlaps])
    header = ["model", "runs", "neurons", "halve the backdoor", "suffice for half", "overlap", "by chance"]
    return table(header, rows)


def mechanism_by_rank(heads: pd.DataFrame) -> Markdown:
    """A row per rank over the runs of one group: median and range of what was measured in any of them."""
    measured = {column: shown for column, shown in OF_HEAD.items() if heads[column].notna().any()}
    rows = [
        [f"rank {rank}", *(show(some[column].dropna().tolist()) for column, (_, show) in measured.items())]
        for rank, some in heads.groupby("rank")
    ]
    return table(["head", *(words for words, _ in measured.values())], rows)


def _known(counts: pd.Series) -> str:
    """Median and range; where some runs have no such number, in how many it is one."""
    known = counts.dropna().tolist()
    said = number_span(known, 0)
    return said if len(known) == len(counts) else f"{said if known else NOTHING}, in {count(len(known), len(counts))}"
