"""The report's tables as they are shown; the numbers behind them are in the frames of `measures`."""

from collections.abc import Sequence

import pandas as pd

from lit_backdoor.functional import Head, HeadSet
from lit_backdoor.report.measures import left, order_of
from lit_backdoor.report.page import Markdown, bold, table
from lit_backdoor.report.published import paper_steps, paper_table
from lit_backdoor.report.ranks import head_order, rank_key, rank_set_name, table_1_sets
from lit_backdoor.report.runs import Run
from lit_backdoor.report.study import Study
from lit_backdoor.report.wording import NOTHING, enumerate_words, number, percent, percent_span, span
from lit_backdoor.show.markdown import paper_name

Accuracies = dict[HeadSet, float]


def runs_table(runs: Sequence[Run], frame: pd.DataFrame) -> Markdown:
    """Where every run stands, and what is said of it.

    Args:
        frame: of `measures.seeds`, of the same runs.
    """
    header = ["run", "state", "steps", "the paper's", "fitted at", "generalised at", "the backdoor sits", "head"]
    header += ["costly heads", "left by the costliest", "alone from", "effective heads", "leader changes"]
    rows = []
    for run, row in zip(runs, frame.to_dict("records"), strict=True):
        cells = [run.name, run.state or NOTHING, number(run.step, 0), number(paper_steps(run.p1), 0)]
        cells += [number(row["fitted_step"], 0), number(row["generalised_step"], 0)]
        if run.p1 is not None:
            cells += [row["word"] or "no backdoor", row["head"] or NOTHING, number(row["n_costly_heads"], 0)]
            cells += [percent(row["costliest_left"]), number(row["stable_exclusive_step"], 0)]
            cells += [number(row["effective_heads"], 1), number(row["leader_changes"], 0)]
        rows.append(cells + [NOTHING] * (len(header) - len(cells)))
    return table(header, rows)


def table_1(run: Run) -> Markdown:
    """The paper's Table 1, with the run's own head numbers; for mod 1 the paper's row above it."""
    lines = [(run.name, left(run), order_of(run))]
    if run.p1 == 1 and len(order_of(run)) == 4:
        lines.insert(0, ("the paper", *_paper_lines("Table 1")[0][1:]))
    return _by_head(lines, complements=True)


def table_2(group: Sequence[Run]) -> Markdown:
    """The paper's Table 2: one row per run, with each run's own head numbers."""
    return _by_head([(run.name, left(run), order_of(run)) for run in group])


def paper_table_2() -> Markdown:
    """The paper's Table 2 as printed."""
    return _by_head(_paper_lines("Table 2"))


def _paper_lines(source: str) -> list[tuple[str, Accuracies, tuple[Head, ...]]]:
    from lit_backdoor.functional import parse_head_set

    lines = []
    for name, row in paper_table(source, "heads").iterrows():
        accuracies = {parse_head_set(heads): value for heads, value in row.items()}
        lines.append((f"experiment {name}", accuracies, head_order(accuracies)))
    return lines


def _by_head(lines: Sequence[tuple[str, Accuracies, tuple[Head, ...]]], complements: bool = False) -> Markdown:
    """Rows of (name, accuracies, heads by rank), in columns of single heads and all; the costliest stands out."""
    heads = tuple(sorted(lines[0][2]))
    sets: list[HeadSet] = [(), *((head,) for head in heads)]
    if complements and len(heads) > 2:
        sets += dict.fromkeys(tuple(sorted(order[1:])) for _, _, order in lines)
    sets.append(heads)
    rows = []
    for name, accuracies, order in lines:
        cells: list[str] = [percent(accuracies[heads]) if heads in accuracies else "" for heads in sets]
        chosen = sets.index((order[0],))
        cells[chosen] = bold(cells[chosen])
        rows.append([name, *cells])
    return table(["patched heads", *(paper_name(one, len(heads)) for one in sets)], rows)


def ranks_table(sets: pd.DataFrame) -> Markdown:
    """What is left and what comes, by rank, over the runs of one model, by state; for mod 1 the paper's beside.

    Args:
        sets: of `measures.head_sets`, of one P1.
    """
    n_heads = int(sets["ranks"].map(lambda ranks: rank_key(ranks)[0]).max())
    states = [state for state in ("generalised", "fitted", "not fitted", "") if (sets["state"] == state).any()]
    counts = {state: int(((sets["state"] == state) & (sets["ranks"] == "none")).sum()) for state in states}
    needed, brings = "backdoor_accuracy", "backdoor_accuracy_of_benign_run"
    header = ["patched heads", f"left, all {sum(counts.values())}"]
    header += [f"left, {state or 'unknown'} ({counts[state]})" for state in states if len(states) > 1]
    theirs = paper_table("Table 2") if (sets["p1"] == 1).all() and n_heads == 4 else None
    header += ["left, the paper"] * (theirs is not None) + ["brought"]
    rows = []
    for ranks in table_1_sets(n_heads):
        some = sets[sets["ranks"] == ranks]
        cells = [rank_set_name(ranks, n_heads), percent_span(some[needed].tolist())]
        cells += [
            percent_span(some.loc[some["state"] == state, needed].tolist()) for state in states if len(states) > 1
        ]
        if theirs is not None:
            cells.append(percent_span(theirs[ranks].tolist()) if ranks in theirs else NOTHING)
        rows.append([*cells, percent_span(some[brings].tolist())])
    return table(header, rows)


def claims_table(claims: pd.DataFrame) -> Markdown:
    """The costliest head of every run: what holds of it."""
    header = [
        "model",
        "seed",
        "state",
        "head",
        "cost to the backdoor",
        "brings",
        "cost to the benign rule",
        "selectivity",
    ]
    rows = [
        [_model(row.p1), _seed(row), row.state, row.head, percent(row.backdoor_cost, 0), percent(row.backdoor_brought, 0),
         percent(row.benign_cost, 0), number(row.selectivity), row.claim]
        for row in claims[claims["rank"] == 1].itertuples()
    ]  # fmt: skip
    return table([*header, "so it is"], rows)


def times_table(times: pd.DataFrame) -> Markdown:
    """When things came, over the runs of one model and state."""
    header = ["model", "state", "what", "in", "median (Kaplan and Meier)", "first to last"]
    rows = [
        [_model(row.p1), row.state, row.moment.replace("_", " "), f"{row.came} of {row.n_runs}",
         number(row.kaplan_meier_median, 0), span([row.first, row.last])]
        for row in _unless_repeated(times).itertuples()
    ]  # fmt: skip
    return table(header, rows)


def spikes_table(spikes: pd.DataFrame) -> Markdown:
    """Loss spikes per 10,000 steps, over the runs of one model, by prominence."""
    rows = []
    for (p1, prominence), some in spikes.groupby(["p1", "prominence"], sort=False):
        rates = some["per_10000_steps"].tolist()
        states = enumerate_words([f"{state or 'unknown'} {span(rows_['per_10000_steps'].tolist(), 1)}"
                                  for state, rows_ in some.groupby("state", sort=False)])  # fmt: skip
        rows.append([_model(p1), number(prominence, 1), str(len(some)), number(some["per_10000_steps"].median(), 1),
                     span(rates, 1), str(int(some["without_end"].sum())), states])  # fmt: skip
    header = ["model", "prominence", "runs", "median", "smallest to largest", "not over at the end", "by state"]
    return table(header, rows)


def comparison_table(comparison: pd.DataFrame) -> Markdown:
    """Every published number beside ours, without a verdict."""
    rows = []
    for row in comparison.itertuples():
        share = "accuracy" in row.quantity or "share" in row.quantity
        digits = 2 if "contribution" in row.quantity or "loss" in row.quantity else 0
        theirs = (
            percent(row.low, 3 if "all pairs" in row.quantity else 2) if share else span([row.low, row.high], digits)
        )
        ours = [row.ours_median, span([row.ours_smallest, row.ours_largest], digits)]
        if share:
            ours = [
                row.ours_median,
                " to ".join(dict.fromkeys((percent(row.ours_smallest), percent(row.ours_largest)))),
            ]
        middle = percent(ours[0]) if share else number(ours[0], digits)
        source = f"{row.source}, {row.experiment}" if row.source != "notebook" else "notebook"
        rows.append([source, _model(row.p1), row.quantity, theirs, middle, ours[1], str(row.n_runs)])
    header = ["where", "model", "quantity", "the paper", "ours, median", "smallest to largest", "runs"]
    return table(header, rows)


def controls_table(study: Study) -> Markdown:
    """Controls and variants, each by what is different."""
    rows = [[run.name, difference, *_in_short(run)] for run, difference in study.controls]
    return table(["run", "what is different", *SHORT], rows)


def branches_table(study: Study) -> Markdown:
    """Each branch, and below it the run that it branched off."""
    rows = []
    for branch, control in study.branches:
        assert branch.parent is not None
        rows.append([branch.path.name, f"{branch.name}, from {branch.parent.stem}", *_in_short(branch)])
        if control is not None:
            rows.append([control.path.name, f"{control.name}, its control", *_in_short(control)])
        else:
            rows.append([NOTHING, "its control is not among these runs", *[NOTHING] * len(SHORT)])
    return table(["folder", "run", *SHORT], rows)


SHORT = ["state", "steps", "benign accuracy", "backdoor accuracy", "the backdoor sits", "head", "left by the costliest"]


def _in_short(run: Run) -> list[str]:
    """The cells of `SHORT`."""
    accuracies = {
        probe: next(r.recipient_accuracy for r in results if not r.heads) for probe, results in run.patching.items()
    }
    cells = [
        run.state or NOTHING,
        number(run.step, 0),
        percent(accuracies.get("benign")),
        percent(accuracies.get("backdoor")),
    ]
    if run.p1 is None:
        return [*cells, *[NOTHING] * 3]
    costliest = min(value for heads, value in left(run).items() if len(heads) == 1)
    return [*cells, run.emergence["word"] or "no backdoor", run.emergence["head"] or NOTHING, percent(costliest)]


def own_table(run: Run, probe: str) -> Markdown:
    """A run of another task: what patching each head leaves of the recipient's answers, and all heads."""
    results = [result for result in run.patching[probe]]
    most = max(len(result.heads) for result in results)
    chosen = [result for result in results if len(result.heads) in (0, 1, most)]
    rows = [
        ["+".join(f"L{h.layer}H{h.head}" for h in result.heads) if len(result.heads) < most or most == 1 else "all",
         percent(result.recipient_accuracy), percent(result.donor_accuracy), number(result.logit_diff), number(result.kl)]
        for result in chosen
    ]  # fmt: skip
    rows[0][0] = "none"
    first = results[0]
    return table([f"{first.donor} heads into the {first.recipient} run", f"{first.recipient} accuracy",
                  f"{first.donor} accuracy", "logit difference", "KL"], rows)  # fmt: skip


def _model(p1: object) -> str:
    return str(p1) if p1 == "clean" else f"mod {p1}"


def _seed(row: object) -> str:
    split = row.split  # type: ignore[attr-defined]
    return f"{row.seed}{f', split {split}' if split else ''}"  # type: ignore[attr-defined]


def _unless_repeated(times: pd.DataFrame) -> pd.DataFrame:
    """Without the rows of the one state in which all runs of a model are: they say again what `all` says."""
    states = times.groupby("p1")["state"].transform("nunique")
    alone = (states == 2) & (times["state"] == "all")
    return times[~alone]
