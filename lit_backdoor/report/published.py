"""The paper's numbers: its tables and its notebook's accuracies as printed, and what its plots show."""

from functools import cache
from importlib.resources import files

import pandas as pd

from lit_backdoor.functional import cost_above_floor, parse_head_set
from lit_backdoor.functional.ranks import NONE, head_order, rank_key, ranks_of
from lit_backdoor.functional.seed_statistics import n_exactly_one
from lit_backdoor.report.declared import declared

N_HEADS = 4
"""Heads of the paper's model."""

FLOOR = 1 / 113
"""What is left of the mod 1 backdoor when it is gone."""


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


def paper_sets(source: str) -> pd.DataFrame:
    """The accuracies of `Table 1` or `Table 2`, as `measures.head_sets` has ours."""
    rows = published()[lambda frame: (frame["source"] == source) & (frame["quantity"] == "backdoor_accuracy")]
    return rows.assign(run="experiment " + rows["experiment"]).rename(columns={"low": "backdoor_accuracy"})


def paper_table(source: str) -> pd.DataFrame:
    """The same with a row per experiment, a column per set of ranks, and the floor."""
    rows = paper_sets(source)
    table = rows.pivot(index="experiment", columns="ranks", values="backdoor_accuracy")
    return table.loc[rows["experiment"].unique(), sorted(table, key=rank_key)].assign(floor=FLOOR)


def n_with_one_costly_head(table: pd.DataFrame, threshold: float) -> int:
    """In how many runs exactly one head is costly; in one without the backdoor, none is.

    Args:
        table: accuracies by ranks, a row per run, and what is left of its backdoor when it is gone, `floor`.
        threshold: the cost from which on a head is called costly.
    """
    singles = [ranks for ranks in table if ranks.isdecimal()]
    there = table[table[NONE] >= declared().min_accuracy].to_dict("records")
    costs = [[cost_above_floor(row[NONE], row[rank], row["floor"]) for rank in singles] for row in there]
    return n_exactly_one(costs, threshold)


def paper_steps(p1: int | None) -> int | None:
    """How many steps the paper trained this model; None if it did not."""
    name = "clean" if p1 is None else str(p1)
    steps = published()[lambda frame: (frame["quantity"] == "training_steps") & (frame["p1"] == name)]["low"]
    return int(steps.iloc[0]) if len(steps) else None
