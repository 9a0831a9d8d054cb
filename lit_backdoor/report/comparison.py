"""Every published number beside ours. None is judged by itself: the wider our range, the more would agree."""

from collections.abc import Sequence

import pandas as pd

from lit_backdoor.report.measures import final_log_loss, label, left, order_of, unpatched
from lit_backdoor.report.published import published
from lit_backdoor.report.ranks import rank_set_name, ranks_of
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_statistics import summarise

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


def comparison_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """comparison.csv: every published number beside median and range of ours with the same P1, heads by rank."""
    rows = []
    frame = published()[lambda numbers: numbers["quantity"] != "training_steps"]
    place = frame.groupby(["quantity", "p1"])["low"].rank(ascending=False, method="first").astype(int)
    for index, number in frame.iterrows():
        what = number["ranks"] or f"head with rank {place[index]}"
        alike = [run for run in runs if str(label(run)["p1"]) == number["p1"]]
        values = [value for run in alike for value in _ours(run, number["quantity"], what, place[index])]
        ours = summarise(values)
        shown = rank_set_name(what, 4) if number["ranks"] else what
        rows.append(
            {name: number[name] for name in ("source", "experiment", "p1")}
            | {"quantity": QUANTITIES[number["quantity"]].format(what=shown), "paper_heads": number["heads"]}
            | {name: number[name] for name in ("low", "high", "how")}
            | {
                "n_runs": ours.n,
                "ours_median": ours.median,
                "ours_smallest": ours.smallest,
                "ours_largest": ours.largest,
            }
        )
    return pd.DataFrame(rows)


def _ours(run: Run, quantity: str, ranks: str, place: int) -> list[float]:
    """The same quantity of one of our runs; empty if it has none."""
    if quantity == "backdoor_accuracy":
        return [value for heads, value in left(run).items() if ranks_of(heads, order_of(run)) == ranks]
    if quantity == "mean_logit":
        largest_first = sorted((head.mean_logit for head in run.attribution["backdoor"]), reverse=True)
        return largest_first[place - 1 : place]
    if quantity == "largest_top_share":
        return [max(head.top_count / head.n_examples for head in run.attribution["backdoor"])]
    if quantity == "benign_grokking_step":
        step = run.emergence["benign_generalised_step"]
        return [] if step is None else [step]
    if quantity == "final_log_loss":
        return [final_log_loss(run)]
    return [unpatched(run)[quantity.partition("_")[0]]]
