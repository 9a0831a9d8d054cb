"""What is said of the runs, each sentence put together from the data, and where it is a comparison with the paper, a
verdict. `inconclusive` is the default: only an interval can make it `agrees` or `differs`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from lit_backdoor.functional.ranks import n_heads_of, rank_set_name
from lit_backdoor.functional.seed_statistics import (
    Verdict,
    difference_of_means,
    difference_of_rates,
    verdict,
    westfall_young,
)
from lit_backdoor.report.crossed import crossed_groups, crossed_statement
from lit_backdoor.report.declared import declared
from lit_backdoor.report.measures import by_state, counted, of_group
from lit_backdoor.report.paths import capture_statement, paths_statement
from lit_backdoor.report.published import N_HEADS, n_with_one_costly_head, paper_table
from lit_backdoor.report.study import Study
from lit_backdoor.runs.run import Run
from lit_backdoor.show.wording import (
    Statement,
    count,
    enumerate_words,
    heading,
    interval,
    not_counted,
    number,
    percent,
    percent_span,
    plural,
    rate,
    runs_of,
    span,
)  # fmt: skip


def statements(study: Study, frames: Mapping[str, pd.DataFrame]) -> list[Statement]:
    """All that the runs allow to say, from the frames of a report; on another task than the paper's nothing is judged.

    Args:
        study: whose runs it is about.
        frames: the tables of the report by name.
    """
    seeds, said = frames["seeds"], [_trained_on(*lengths) for lengths in study.lengths]
    if mod_1 := [run.name for run in study.compared if run.p1 == 1]:
        sets = counted(frames["table2"][frames["table2"]["run"].isin(mod_1)])
        left_out = not_counted(len(mod_1) - sets["run"].nunique())
        for each in compare(by_ranks(sets), judged=not study.differs_from_paper):
            said.append(replace(each, text=f"{each.text} {left_out}".rstrip()))
    for name, rows in seeds[seeds["p1"] != "clean"].groupby("group", sort=False):
        rows_of = of_group(str(name), frames)
        said.append(_where_it_sits(str(name), rows, rows_of["heads"]))
        if len(paths := rows_of.get("paths", pd.DataFrame())):
            said.append(paths_statement(str(name), paths))
        if len(watched := rows[rows["attention_measured"].astype(bool)]):
            said.append(capture_statement(str(name), watched))
    said += [crossed_statement(name, rows) for name, rows in crossed_groups(seeds)]
    return [*said, _training(seeds, frames["times"]), _length(seeds)]


def by_ranks(sets: pd.DataFrame, accuracy: str = "backdoor_accuracy") -> pd.DataFrame:
    """What patching leaves: a row per run with its state and floor, a column per set of ranks."""
    table = sets.pivot(index=["seed", "split", "state", "floor"], columns="ranks", values=accuracy)
    return table.reset_index(["state", "floor"])


def compare(ours: pd.DataFrame, judged: bool = True) -> list[Statement]:
    """The comparisons of mod 1 with the paper's Table 2, as they were declared.

    Args:
        ours: what patching leaves, as of `by_ranks`, with at least the declared family of sets. No runs, and models of
            another number of heads than the paper's, are compared in nothing.
        judged: whether the runs are the paper's task; otherwise all is inconclusive.
    """
    theirs = paper_table("Table 2")
    if ours.empty or n_heads_of(ranks for ranks in ours if ranks not in ("state", "floor")) != N_HEADS:
        return []
    least = declared().min_seeds if judged else math.inf
    return [said(ours, theirs, least) for said in (_primary_endpoint, _exactly_one_head, _all_ranks)]


def logit(accuracy: float) -> float:
    """Logarithm of the odds, kept away from 0 and 1 as declared."""
    edge = declared().closest_to_0_and_1
    inside = min(max(accuracy, edge), 1 - edge)
    return math.log(inside / (1 - inside))


def _trained_on(longest: Sequence[Run], others: Sequence[Run]) -> Statement:
    """Of runs in one folder that were asked for different numbers of steps: whether those that went on are a choice."""
    end, name = max(run.max_steps or 0 for run in others), longest[0].group
    fitted = [sum((run.emergence.get("fitted_step") or math.inf) <= end for run in runs) for runs in (longest, others)]
    headline = (
        f"{count(len(longest), len(longest) + len(others))} in this folder; the others were asked for {end:,} steps at "
        f"most. By then {fitted[0]} of these {len(longest)} had fitted, and {fitted[1]} of the other {len(others)}."
    )
    text = (
        "If runs were stopped or trained on by whether they had fitted, as reproduce does, all that is said of "
        f"{name}, verdicts too, is about runs that fit by then, not about all seeds. The others are reported apart."
    )
    return Statement(f"{heading(name)}: which runs these are", headline, text)


def _primary_endpoint(ours: pd.DataFrame, theirs: pd.DataFrame, least: float) -> Statement:
    limits, parts = declared(), []
    few = "too few to judge" if math.isfinite(least) else "not judged"
    judged: dict[str, Verdict] = {}
    for state, some in by_state(ours):
        difference = difference_of_means(list(map(logit, some["1"])), list(map(logit, theirs["1"])))
        enough = len(some) >= least
        judged[state] = verdict(difference, limits.margin_logits) if enough else "inconclusive"
        said = f"{interval(difference)} logits, {judged[state]}" if enough else few
        parts.append(f"{runs_of(state, len(some))}: {percent_span(some['1'].tolist())} left ({said})")
    headline = (
        f"Patching the costliest head alone leaves {percent_span(ours['1'].tolist())} of the backdoor, in the paper's "
        f"ten experiments {percent_span(theirs['1'].tolist())}."
    )
    text = (
        f"Median [smallest to largest]. {'; '.join(parts)}. In brackets: difference of the mean logits with its 95% "
        f"BCa interval. It agrees if the whole interval lies within {limits.margin_logits} logits (a factor of "
        f"{math.exp(limits.margin_logits):.1f} in the odds), and differs if it does not and excludes 0."
    )
    first: Verdict = next(iter(judged.values()))  # of all runs, whatever their state
    return Statement("Primary endpoint: what the costliest head leaves", headline, text, first)


def _exactly_one_head(ours: pd.DataFrame, theirs: pd.DataFrame, least: float) -> Statement:
    limits, n, their_n = declared(), len(ours), len(theirs)
    k, their_k = (n_with_one_costly_head(table, limits.threshold) for table in (ours, theirs))
    difference = difference_of_rates(k, n, their_k, their_n)
    said = verdict(difference, limits.margin_rate) if n >= least else "inconclusive"
    parts = [
        f"{runs_of(state, len(some))}: {rate(n_with_one_costly_head(some, limits.threshold), len(some))}"
        for state, some in by_state(ours)
    ]
    text = (
        f"A head is costly if patching it alone costs at least {limits.threshold:.0%} of the backdoor above the floor. "
        f"With Wilson's intervals, {'; '.join(parts)}; the paper: {rate(their_k, their_n)}. Difference: "
        f"{interval(difference, 0, 100)} percentage points (Newcombe). It would agree within "
        f"{100 * limits.margin_rate:.0f} points, which the paper's ten experiments are too few to show beside fewer "
        "than about a thousand of ours; the curve over thresholds says how much depends on the threshold."
    )
    headline = (
        f"Exactly one head is costly in {count(k, n)} of mod 1; by the same rule in "
        f"{count(their_k, their_n, 'experiment')} of the paper's Table 2."
    )
    return Statement("Exactly one costly head", headline, text, said)


def _all_ranks(ours: pd.DataFrame, theirs: pd.DataFrame, least: float) -> Statement:
    limits = declared()
    family = list(limits.family)
    p_values = dict(zip(family, westfall_young(ours[family].to_numpy(), theirs[family].to_numpy()), strict=True))
    apart = [rank_set_name(ranks, 4) for ranks in family if p_values[ranks] < limits.alpha]
    said: Verdict = "differs" if apart and len(ours) >= least else "inconclusive"
    headline = "No mean is shown to differ." if math.isfinite(least) else "The means are not judged."
    if said == "differs":
        headline = f"The means differ for {enumerate_words(apart)}."
    parts = [
        f"{rank_set_name(ranks, 4)}: {percent_span(ours[ranks].tolist())}, the paper "
        f"{percent_span(theirs[ranks].tolist())}, P = {number(p_values[ranks], 3)}"
        for ranks in family
    ]
    text = (
        f"What patching leaves, median [smallest to largest]. {'; '.join(parts)}. P values are Westfall and Young's, "
        "corrected for all of these. That no difference is shown is not agreement: a test can only say differs."
    )
    return Statement("Tables 1 and 2, by rank", headline, text, said)


def _where_it_sits(name: str, frame: pd.DataFrame, claims: pd.DataFrame) -> Statement:
    parts = []
    for state, some in by_state(frame):
        words = some["word"].astype(object).where(some["word"].notna(), "no backdoor").value_counts().sort_index()
        said = enumerate_words([f"{word} in {n}" for word, n in words.items()])
        if len(present := some.loc[some["word"].notna(), "effective_heads"].tolist()):
            said += f", effective heads {span(present, 1)}"
        parts.append(f"{runs_of(state, len(some))}: {said}")
    first = claims[(claims["rank"] == 1) & (claims["claim"] != "no backdoor")]
    without = int((claims["rank"] == 1).sum()) - len(first)
    carried = int((first["claim"] == "carries the backdoor").sum())
    holds = [f"{word} in {int(known.sum())} of {len(known)}" for word, known in _known(first)]
    headline = (
        f"One head carries the backdoor in {count(carried, len(first))}; the costliest is {enumerate_words(holds)}."
    )
    if not len(first):
        headline = "No run has the backdoor, so no head carries it."
    text = f"Where it sits at the end: {'; '.join(parts)}."
    if len(measured := first.loc[first["specific"].notna(), "benign_cost"].tolist()):
        cost = percent_span(measured, 0)
        every = claims.loc[claims["specific"].notna(), ["benign_cost", "specific"]]
        text += (
            f" Mean-ablated in the benign run, the costliest head costs {cost} of the benign rule. Of all "
            f"{plural(len(every), 'head')} of these runs {int(every['specific'].astype(bool).sum())} are specific; the "
            f"one that costs the benign rule least costs {percent(every['benign_cost'].min(), 0)}."
        )
    if by_chance := [f"{word} in {percent(known.mean(), 0)}" for word, known in _known(claims)]:
        text += f" Control: a head drawn at random and called the carrier is {enumerate_words(by_chance)} of the draws."
    if without:
        text += f" {not_counted(without)}"
    return Statement(f"{heading(name)}: where the backdoor sits", headline, text)


def _known(claims: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """Which heads are necessary, sufficient and specific, as far as each was measured; 0 or 1 for each head."""
    words = ("necessary", "sufficient", "specific")
    return [(word, known.astype(float)) for word in words if len(known := claims[word].dropna())]


def _training(frame: pd.DataFrame, times: pd.DataFrame) -> Statement:
    states = [f"{state or 'unknown'} in {n}" for state, n in frame["state"].value_counts(sort=False).items()]
    came = times[times["moment"] == "generalised"].drop_duplicates("group")  # the first is of all runs
    parts = [
        f"{row.group} {row.came} of {row.n_runs}"
        + (f" (step {span([row.first, row.last])}, median {number(row.kaplan_meier_median, 0)})" if row.came else "")
        for row in came.itertuples()
    ]
    text = (
        f"Had generalised: {', '.join(parts)}; medians are Kaplan and Meier's. The paper shows one run of each "
        "model, so its steps of grokking and final losses stand beside ours without a verdict."
    )
    return Statement("What training came to", f"Of {plural(len(frame))}: {enumerate_words(states)}.", text)


def _length(frame: pd.DataFrame) -> Statement:
    known = frame.dropna(subset="paper_steps")
    short = known[known["step"] < known["paper_steps"]]
    parts = [
        f"{name}: {span(rows['step'].tolist())} steps in {plural(len(rows))}, the paper {rows['paper_steps'].iloc[0]:,}"
        for name, rows in short.groupby("group", sort=False)
    ]
    text = f"Shorter are {'; '.join(parts)}. What they show may still change." if parts else ""
    unfinished = frame[frame["step"] < frame["steps_asked_for"].fillna(0)]
    if len(unfinished):
        left = [f"{row.run} ({row.step:,} of {row.steps_asked_for:,})" for row in unfinished.itertuples()]
        text += f" Not yet where they were asked to go: {enumerate_words(left)}."
    headline = f"{count(len(known) - len(short), len(known))} had at least the paper's number of steps."
    return Statement("Length of training", headline, text)
