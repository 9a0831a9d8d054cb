"""The report's tables as they are shown; the numbers behind them are in the frames of `measures`."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from lit_backdoor.functional import HeadSet, head_name, head_set_name, parse_head_set
from lit_backdoor.functional.ranks import NONE, n_heads_of, rank_key, rank_set_name, table_1_sets
from lit_backdoor.report.measures import ALL, DIRECTIONS, by_state
from lit_backdoor.report.page import Markdown, bold, table
from lit_backdoor.report.published import paper_sets, paper_table
from lit_backdoor.runs.run import Run
from lit_backdoor.show.markdown import paper_name
from lit_backdoor.show.over_seeds import Points, points
from lit_backdoor.show.wording import NOTHING, number, percent, percent_span, span


def show(frame: pd.DataFrame, columns: Mapping[str, str]) -> Markdown:
    """Some columns of a frame.

    Args:
        frame: one row of it is one of the table.
        columns: by what stands above it, `NAME` or `NAME FORMAT`; the format is Python's, such as `.0%`.
    """
    specs = [column.partition(" ")[::2] for column in columns.values()]
    rows = [[_cell(row.get(name), spec) for name, spec in specs] for row in frame.to_dict("records")]
    return table(list(columns), rows)


def _cell(value: Any, spec: str) -> str:
    if pd.isna(value) or value == "":
        return NOTHING
    return format(value, spec) if spec else str(value).replace("_", " ")


def table_1(sets: pd.DataFrame) -> Markdown:
    """The paper's Table 1 of one run; for mod 1 with the paper's heads its row above it."""
    paper = paper_sets("Table 1").assign(run="the paper")
    with_paper = (sets["p1"] == 1).all() and _all_heads(sets) == _all_heads(paper)
    return by_head(pd.concat([paper, sets]) if with_paper else sets, complements=True)


def _all_heads(sets: pd.DataFrame) -> HeadSet:
    """All heads of the model: the largest set that was patched."""
    return parse_head_set(max(sets["heads"], key=rank_key))


def by_head(sets: pd.DataFrame, complements: bool = False) -> Markdown:
    """The paper's Tables 1 (with complements) and 2: a row per run, own head numbers; the costliest head stands out.

    Args:
        sets: of `measures.head_sets`, or of `paper_sets`.
        complements: whether to show all heads but the costliest.
    """
    n_heads = n_heads_of(sets["ranks"])
    columns = [ranks for ranks in table_1_sets(n_heads) if complements or rank_key(ranks)[0] in (0, 1, n_heads)]
    heads = sorted(sets.loc[sets["ranks"].isin(columns), "heads"].unique(), key=rank_key)
    rows = []
    for run, some in sets.groupby("run", sort=False):
        cells = {row.heads: percent(row.backdoor_accuracy) for row in some.itertuples()}
        costliest = some.loc[some["ranks"] == "1", "heads"].item()
        cells[costliest] = bold(cells[costliest])
        rows.append([run, *(cells.get(name, "") for name in heads)])
    everything = _all_heads(sets)
    return table(["patched heads", *(paper_name(parse_head_set(name), everything) for name in heads)], rows)


def ranks_table(sets: pd.DataFrame) -> Markdown:
    """What is left and what comes, by rank, over the runs of one model, by state; for mod 1 the paper's beside.

    Args:
        sets: of `measures.head_sets`, of one group.
    """
    n_heads = n_heads_of(sets["ranks"])
    needed, brings = DIRECTIONS.values()
    columns = {
        f"left, {state} ({(some['ranks'] == NONE).sum()})": points(some, "ranks", needed)
        for state, some in by_state(sets)
    }
    if (sets["p1"] == 1).all() and n_heads == 4:
        columns["left, the paper (10)"] = paper_table("Table 2").to_dict("list")
    columns[f"brought, {ALL}"] = points(sets, "ranks", brings)
    places = {ranks: rank_set_name(ranks, n_heads) for ranks in table_1_sets(n_heads)}
    return span_table("patched heads", places, columns)


def span_table(corner: str, places: Mapping[str, str], columns: Mapping[str, Points]) -> Markdown:
    """Shares over runs, each cell their median and range.

    Args:
        corner: what stands above the rows' names.
        places: what each row is called.
        columns: the runs' numbers by place, by what stands above the column.
    """
    rows = [
        [words, *(percent_span(values.get(place, [])) for values in columns.values())]
        for place, words in places.items()
    ]
    return table([corner, *columns], rows)


def comparison_table(comparison: pd.DataFrame) -> Markdown:
    """Every published number beside ours, without a verdict."""
    rows = []
    for row in comparison.itertuples():
        digits = 2 if "contribution" in row.quantity or "loss" in row.quantity else 0
        unit = "%" if "accuracy" in row.quantity or "share" in row.quantity else ""
        spec = {"digits": 3 if "all pairs" in row.quantity else 2, "unit": 100} if unit else {"digits": digits}
        source = f"{row.source}, {row.experiment}" if row.source != "notebook" else "notebook"
        ends = (span(pair, **spec) for pair in ([row.low, row.high], [row.ours_smallest, row.ours_largest]))
        theirs, ours = (f"{end}{unit}" if end != NOTHING else end for end in ends)
        middle = percent(row.ours_median) if unit else number(row.ours_median, digits)
        model = row.p1 if row.p1 == "clean" else f"mod {row.p1}"
        rows.append([source, model, row.quantity, theirs, middle, ours, row.n_runs])
    header = ["where", "model", "quantity", "the paper", "ours, median", "smallest to largest", "runs"]
    return table(header, rows)


def own_attribution(run: Run, probe: str) -> Markdown:
    """A run of another task: what each head writes to the logit of the recipient's answer."""
    frame = pd.DataFrame([vars(result) | {"name": head_name(*result.head)} for result in run.attribution[probe]])
    columns = {"head": "name", "mean contribution": "mean_logit .2f", "centred": "mean_logit_centered .2f"}
    return show(frame, columns | {"contributes most in": "top_count ,d", "of": "n_examples ,d"})


def own_table(run: Run, probe: str) -> Markdown:
    """A run of another task: what patching each head leaves of the recipient's answers, and all heads."""
    most = max(len(result.heads) for result in run.patching[probe])
    results = [result for result in run.patching[probe] if len(result.heads) in (0, 1, most)]
    recipient, donor = results[0].recipient, results[0].donor
    frame = pd.DataFrame([vars(result) | {"heads": head_set_name(result.heads)} for result in results])
    columns = {f"{donor} heads in the {recipient} run": "heads", f"{recipient} accuracy": "recipient_accuracy .2%"}
    columns |= {f"{donor} accuracy": "donor_accuracy .2%", "logit difference": "logit_diff .2f", "KL": "kl .2f"}
    return show(frame, columns)
