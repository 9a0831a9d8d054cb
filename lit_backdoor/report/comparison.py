"""The paper's numbers beside ours. None is judged by itself: the wider our range, the more would agree."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from lit_backdoor.functional.ranks import rank_set_name, ranks_of
from lit_backdoor.functional.seed_statistics import kaplan_meier_median, summarise, wilson
from lit_backdoor.report.declared import declared
from lit_backdoor.report.measures import by_state, final_log_loss, label
from lit_backdoor.report.published import N_HEADS, n_with_one_costly_head, paper_table, published
from lit_backdoor.runs.run import Run

QUANTITIES = {
    "backdoor_accuracy": "backdoor accuracy, patched: {what}",
    "mean_logit": "mean contribution to the backdoor logit, {what}",
    "largest_top_share": "share of the examples in which one head contributes most",
    "benign_grokking_step": "step at which the benign rule has generalised",
    "final_log_loss": "log training loss in the end (natural logarithm)",
    "benign_accuracy_all_pairs": "benign accuracy on all pairs, training ones included",
    "backdoor_accuracy_all_pairs": "backdoor accuracy on all pairs, training ones included",
}
"""The quantities that stand beside each other, in words."""


def curve_rows(ours: pd.DataFrame) -> pd.DataFrame:
    """exactly_one.csv: in which share of the runs exactly one head is costly, by threshold, ours by state, the paper's.

    Args:
        ours: what patching leaves in the runs of mod 1; see `by_ranks`.
    """
    series = [(f"ours, {state}", some) for state, some in by_state(ours)]
    series.append(("the paper", paper_table("Table 2")))
    return pd.DataFrame(
        {"whose": name, "threshold": threshold, "n_runs": len(table), "rate": rate.value,
         "wilson95_low": rate.low, "wilson95_high": rate.high}
        for name, table in series
        for threshold in declared().thresholds
        for rate in [wilson(n_with_one_costly_head(table, threshold), len(table))]
    )  # fmt: skip


def comparison_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """comparison.csv: every published number beside median and range of ours with the same P1, heads by rank.

    Of a step that has not come in every run, the median is Kaplan and Meier's over all of them, NaN if it came in fewer
    than half; the range is that of the runs in which it came.
    """
    rows = []
    frame = published()[lambda numbers: numbers["quantity"] != "training_steps"]
    place = frame.groupby(["quantity", "p1"])["low"].rank(ascending=False, method="first").astype(int)
    for index, number in frame.iterrows():
        what = number["ranks"] or f"head with rank {place[index]}"
        alike = [run for run in runs if str(label(run)["p1"]) == number["p1"]]
        ours = summarise([value for run in alike for value in _ours(run, number["quantity"], what, place[index])])
        if number["quantity"] == "benign_grokking_step":
            steps = [run.emergence.get("benign_generalised_step") for run in alike]
            middle = kaplan_meier_median(steps, [run.step for run in alike])
            ours = replace(ours, n=len(steps), median=math.nan if middle is None else middle)
        shown = rank_set_name(what, 4) if number["ranks"] else what
        row = number[["source", "experiment", "p1"]].to_dict()
        row |= {"quantity": QUANTITIES[number["quantity"]].format(what=shown), "paper_heads": number["heads"]}
        row |= number[["low", "high", "how"]].to_dict() | {"n_runs": ours.n, "ours_median": ours.median}
        rows.append(row | {"ours_smallest": ours.smallest, "ours_largest": ours.largest})
    return pd.DataFrame(rows)


def _ours(run: Run, quantity: str, ranks: str, place: int) -> list[float]:
    """The same quantity of one of our runs; empty if it has none."""
    heads = run.attribution.get("backdoor", [])
    if quantity == "backdoor_accuracy":
        alike = len(run.order) == N_HEADS  # one of four heads and one of eight are not the same thing
        return [value for some, value in run.left.items() if alike and ranks_of(some, run.order) == ranks]
    if quantity == "mean_logit":
        return sorted((head.mean_logit for head in heads), reverse=True)[place - 1 : place]
    if quantity == "largest_top_share":
        return [max(head.top_count / head.n_examples for head in heads)] if heads else []
    if quantity == "benign_grokking_step":
        step = run.emergence.get("benign_generalised_step")
        return [] if step is None else [step]
    if quantity == "final_log_loss":
        return [final_log_loss(run)]
    return [run.unpatched[quantity.partition("_")[0]]]
