"""Through which edges the trigger reaches the answer, over runs: groups of all heads, and heads by rank."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lit_backdoor.functional import EdgeSet, Head, cost_above_floor
from lit_backdoor.report.declared import declared
from lit_backdoor.report.measures import has_backdoor, label, with_progress
from lit_backdoor.report.page import Markdown
from lit_backdoor.report.tables import span_table
from lit_backdoor.runs.run import Run
from lit_backdoor.show.over_seeds import ALL_HEADS, EDGE_WORDS, points
from lit_backdoor.show.wording import Statement, count, heading, not_counted, percent_span, plural, span

WAYS = ("Q", "K", "V", "D")
"""The ways by which the trigger leaves its position."""


def path_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """paths.csv: what is left of the backdoor if edges see the benign run, and what the same edges bring into it.

    A row per run, group of edges, and rank of head; rank `all` is every head at once. `cost` and `brings` are above the
    floor, and undefined where there is no backdoor.
    """
    rows: list[dict[str, Any]] = []
    for run in with_progress(runs, "paths"):
        brought = {result.edges: result.donor_accuracy for result in run.paths.get("benign", [])}
        results = run.paths.get("backdoor", [])
        whole = next((result.recipient_accuracy for result in results if not result.edges), math.nan)
        whole = whole if has_backdoor(run) else math.nan
        for result in results:
            group, head = (result.group, None) if result.group else _group_of(result.edges)
            if group in EDGE_WORDS and result.edges in brought:
                left, comes = result.recipient_accuracy, brought[result.edges]
                row = label(run) | {"edges": group, "rank": run.order.index(head) + 1 if head else ALL_HEADS}
                row |= {"left": left, "brought": comes, "cost": cost_above_floor(whole, left, result.floor)}
                rows.append(row | {"brings": 1 - cost_above_floor(whole, comes, result.floor)})
    return pd.DataFrame(rows)


def _group_of(edges: EdgeSet) -> tuple[str, Head | None]:
    """The group and the head of edges from or to one head alone; of other edges, none."""
    parts, heads = "", set[Head]()
    for edge in edges:
        part, layer, head = edge.receiver
        if isinstance(edge.sender, Head):
            parts, heads = f"{parts}A_{part}", heads | {edge.sender}
        elif head is not None:
            parts, heads = f"{parts}{part}", heads | {Head(layer or 0, head)}
    return (parts, heads.pop()) if len(heads) == 1 else ("", None)


def paths_by_rank(paths: pd.DataFrame, column: str) -> Markdown:
    """`left` or `brought` over the runs of one group: a row per kind of edges, of all heads and by rank."""
    ranks = sorted(paths["rank"].unique(), key=lambda rank: (rank != ALL_HEADS, rank))
    by_rank = {rank: points(paths[paths["rank"] == rank], "edges", column) for rank in ranks}
    columns = {f"rank {rank}" if rank != ALL_HEADS else "all heads": values for rank, values in by_rank.items()}
    return span_table(column, {e: words for e, words in EDGE_WORDS.items() if e in by_rank.get(ALL_HEADS, {})}, columns)


def paths_statement(name: str, paths: pd.DataFrame) -> Statement:
    """Which ways of the trigger the backdoor takes, in the runs that have one: without it, a cost is undefined."""
    limit, whole = declared().path, paths[paths["rank"] == ALL_HEADS].dropna(subset="cost")
    without = paths["run"].nunique() - whole["run"].nunique()
    needed = whole.assign(holds=whole["cost"] >= limit).pivot(index="run", columns="edges", values="holds")
    ways = [way for way in WAYS if way in needed]
    by_run = Counter("+".join(way for way in ways if row[way]) or "none" for _, row in needed.iterrows())
    carries = int(needed["Q"].sum()) if "Q" in needed else 0
    left, brings = [], []
    for edges, rows in whole.groupby("edges", sort=False):
        left.append(f"{EDGE_WORDS[edges]} {percent_span(rows['left'].tolist())}")
        brings.append(f"{EDGE_WORDS[edges]} in {int((rows['brings'] >= limit).sum())}")
    headline = f"The query carries the path in {count(carries, len(needed))}, alone in {by_run['Q']}."
    text = (
        f"Left with every head's edges of a kind made benign: {', '.join(left)}. A way carries the path if that costs "
        f"at least {limit:.0%} of the backdoor above the floor; alone, if no other of query, key, value and past the "
        f"heads (Q, K, V, D) does. By run: {', '.join(f'{which} in {n}' for which, n in by_run.most_common())}. The "
        f"same edges, triggered, bring at least {limit:.0%} into the benign run: {', '.join(brings)}. Edges are not "
        "additive."
    )
    if not len(whole):
        headline, text = "No run has the backdoor, so nothing carries it.", ""
    elif without:
        text += f" {not_counted(without)}"
    return Statement(f"{heading(name)}: by which path", headline, text)


def capture_statement(name: str, runs: pd.DataFrame) -> Statement:
    """Whether the trigger captures attention before some head costs anything, in the runs that measured attention."""
    captured, both = runs["capture_step"].dropna(), runs["capture_lag"].notna().sum()
    before = runs["captured_before_cost"].dropna().astype(bool)
    headline = "No run has both dates: when attention was captured, and when some head was first costly."
    if both:
        headline = (
            f"Attention was captured before some head was costly in {int(before.sum())}, and after it in "
            f"{int((~before).sum())} of {plural(both)} with both dates."
        )
        if unknown := both - len(before):
            headline += f" Of {unknown} it can't be said: one date lies in the interval of the other."
    lags = runs.loc[runs["captured_before_cost"].notna(), "capture_lag"].astype(float).tolist()
    lag = f"; where the order is known, the first cost came {span(lags)} steps after it, give or take the distance of "
    lag = f"{lag}two probes" if lags else ""
    text = (
        f"Captured in {count(len(captured), len(runs))}{lag}. Captured: the head whose attention the trigger moves "
        "most at the end, costliest or not, is moved half as much as then; attention can move so without a backdoor. "
        "A date lies between two probes; one is before the other if so wherever they lie."
    )
    return Statement(f"{heading(name)}: attention before cost", headline, text)
