"""The paper's numbers, and ours beside them. No number is judged by itself: a wide range would make anything agree."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import pandas as pd

from lit_backdoor.functional import cost_above_floor, parse_head_set
from lit_backdoor.report.measures import final_log_loss, label, left, order_of
from lit_backdoor.report.ranks import head_order, rank_key, rank_set_name, ranks_of
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_statistics import summarise

FLOOR = 1 / 113
"""What is left of the mod 1 backdoor when it is gone."""

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


@cache
def published() -> pd.DataFrame:
    """Every number of published.csv: the tables and the notebook's accuracies as printed, and what its plots show.

    `low` and `high` differ where a number is a range; `heads` are the paper's own head numbers; `ranks` of the patched
    sets are by what patching costs in the same experiment.
    """
    with (files("lit_backdoor.report") / "published.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype={"p1": str, "experiment": str}, keep_default_na=False)
    frame["ranks"] = ""
    for _, rows in frame[frame["quantity"] == "backdoor_accuracy"].groupby(["source", "experiment"]):
        sets = [parse_head_set(text) for text in rows["heads"]]
        order = head_order(dict(zip(sets, rows["low"], strict=True)))
        frame.loc[rows.index, "ranks"] = [ranks_of(heads, order) for heads in sets]
    return frame


def paper_table(source: str, columns: str = "ranks") -> pd.DataFrame:
    """The accuracies of `Table 1` or `Table 2`: a row per experiment, a column per set of `heads` or `ranks`."""
    rows = published()[lambda frame: (frame["source"] == source) & (frame["quantity"] == "backdoor_accuracy")]
    order = sorted(rows[columns].unique(), key=rank_key)
    table = rows.pivot(index="experiment", columns=columns, values="low")[order]
    return table.loc[rows["experiment"].unique()]


def single_costs(table: pd.DataFrame, floor: float = FLOOR) -> list[list[float]]:
    """What patching each head alone costs, [run, rank], of a table of accuracies by ranks."""
    singles = [ranks for ranks in table if ranks.isdecimal()]
    return [[cost_above_floor(row["none"], row[rank], floor) for rank in singles] for _, row in table.iterrows()]


def paper_steps(p1: int | None) -> int | None:
    """How many steps the paper trained this model; None if it did not."""
    name = "clean" if p1 is None else str(p1)
    steps = published()[lambda frame: (frame["quantity"] == "training_steps") & (frame["p1"] == name)]["low"]
    return int(steps.iloc[0]) if len(steps) else None


def comparison_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """comparison.csv: every published number beside median and range of ours with the same P1, heads by rank."""
    rows = []
    frame = published()[published()["quantity"] != "training_steps"]
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
    probe = quantity.partition("_")[0]
    return [result.recipient_accuracy for result in run.patching[probe] if not result.heads]
