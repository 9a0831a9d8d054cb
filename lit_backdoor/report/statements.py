"""What is said of the runs, each sentence put together from the data, and where it is a comparison with the paper, a
verdict. `inconclusive` is the default: only an interval can make it `agrees` or `differs`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from lit_backdoor.report.declared import declared
from lit_backdoor.report.measures import ALL, by_state, groups, head_claims, head_sets, seeds, time_rows
from lit_backdoor.report.published import n_with_one_costly_head, paper_steps, paper_table
from lit_backdoor.report.ranks import rank_set_name
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_statistics import (
    Verdict,
    difference_of_means,
    difference_of_rates,
    verdict,
    westfall_young,
    wilson,
)
from lit_backdoor.report.wording import count, enumerate_words, interval, number, percent, percent_span, plural, span


@dataclass(frozen=True)
class Statement:
    """Something said of the runs.

    Attributes:
        title: what it is about.
        headline: the answer in one sentence.
        text: the numbers behind it, and the rule.
        verdict: beside the paper; None where the paper says nothing, or nothing that can be judged.
    """

    title: str
    headline: str
    text: str
    verdict: Verdict | None = None


def statements(runs: Sequence[Run], judged: bool = True) -> list[Statement]:
    """All that these runs allow to say.

    Args:
        runs: that differ in P1, seed and split alone.
        judged: whether they are the paper's task; otherwise every comparison is inconclusive.
    """
    said = []
    frame, sets = seeds(runs), head_sets(runs)
    if len(sets) and (sets["p1"] == 1).any():
        said += compare(by_ranks(sets[sets["p1"] == 1]))
    for name, group in groups(runs).items():
        said.append(_where_it_sits(name, frame[frame["p1"] == group[0].p1], head_claims(group)))
    said += [_training(frame), _length(runs)]
    if judged:
        return said
    return [replace(statement, verdict=statement.verdict and "inconclusive") for statement in said]


def by_ranks(sets: pd.DataFrame, accuracy: str = "backdoor_accuracy") -> pd.DataFrame:
    """What patching leaves: a row per run with its state, a column per set of ranks."""
    return sets.pivot(index=["seed", "split", "state"], columns="ranks", values=accuracy).reset_index("state")


def compare(ours: pd.DataFrame) -> list[Statement]:
    """The comparisons of mod 1 with the paper's Table 2, as they were declared.

    Args:
        ours: what patching leaves, a row per run: `state`, and a column per set of ranks, at least the declared family.
    """
    theirs = paper_table("Table 2")
    if "1+2+3+4" not in ours:
        return []  # another number of heads
    return [_primary_endpoint(ours, theirs), _exactly_one_head(ours, theirs), _all_ranks(ours, theirs)]


def logit(accuracy: float) -> float:
    """Logarithm of the odds, kept away from 0 and 1 as declared."""
    edge = declared().closest_to_0_and_1
    inside = min(max(accuracy, edge), 1 - edge)
    return math.log(inside / (1 - inside))


def _primary_endpoint(ours: pd.DataFrame, theirs: pd.DataFrame) -> Statement:
    limits, parts = declared(), []
    judged: dict[str, Verdict] = {}
    for state, some in by_state(ours):
        difference = difference_of_means(list(map(logit, some["1"])), list(map(logit, theirs["1"])))
        enough = len(some) >= limits.min_seeds
        judged[state] = verdict(difference, limits.margin_logits) if enough else "inconclusive"
        said = f"{interval(difference)} logits, {judged[state]}" if enough else "too few to judge"
        parts.append(f"{_runs(state, len(some))}: {percent_span(some['1'].tolist())} left ({said})")
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


def _exactly_one_head(ours: pd.DataFrame, theirs: pd.DataFrame) -> Statement:
    limits = declared()
    k, n, their_k, their_n = n_with_one_costly_head(ours), len(ours), n_with_one_costly_head(theirs), len(theirs)
    difference = difference_of_rates(k, n, their_k, their_n)
    said = verdict(difference, limits.margin_rate) if n >= limits.min_seeds else "inconclusive"
    parts = [
        f"{_runs(state, len(some))}: {_rate(n_with_one_costly_head(some), len(some))}" for state, some in by_state(ours)
    ]
    text = (
        f"A head is costly if patching it alone costs at least {limits.threshold:.0%} of the backdoor above the floor. "
        f"With Wilson's intervals, {'; '.join(parts)}; the paper: {_rate(their_k, their_n)}. Difference: "
        f"{interval(difference, 0, 100)} percentage points (Newcombe). It would agree within "
        f"{100 * limits.margin_rate:.0f} points, which ten experiments of the paper are too few to show whatever ours "
        "are; the curve over thresholds says how much depends on the threshold."
    )
    headline = (
        f"Exactly one head is costly in {count(k, n)} of mod 1; by the same rule in "
        f"{count(their_k, their_n, 'experiment')} of the paper's Table 2."
    )
    return Statement("Exactly one costly head", headline, text, said)


def _all_ranks(ours: pd.DataFrame, theirs: pd.DataFrame) -> Statement:
    limits = declared()
    family = list(limits.family)
    p_values = dict(zip(family, westfall_young(ours[family].to_numpy(), theirs[family].to_numpy()), strict=True))
    apart = [rank_set_name(ranks, 4) for ranks in family if p_values[ranks] < limits.alpha]
    said: Verdict = "differs" if apart and len(ours) >= limits.min_seeds else "inconclusive"
    headline = f"The means differ for {enumerate_words(apart)}." if said == "differs" else "No mean is shown to differ."
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
        parts.append(f"{_runs(state, len(some))}: {said}, effective heads {span(some['effective_heads'].tolist(), 1)}")
    first = claims[claims["rank"] == 1]
    carried = int((first["claim"] == "carries the backdoor").sum())
    holds = [f"{word} in {int(known.sum())} of {len(known)}" for word, known in _known(first)]
    headline = (
        f"One head carries the backdoor in {count(carried, len(first))}; the costliest is {enumerate_words(holds)}."
    )
    text = f"Where it sits at the end: {'; '.join(parts)}."
    if len(measured := first["benign_cost"].dropna().tolist()):
        cost = percent_span(measured, 0)
        text += f" Mean-ablated in the benign run, the costliest head costs {cost} of the benign rule."
    by_chance = [f"{word} in {percent(known.mean(), 0)}" for word, known in _known(claims)]
    text += f" Control: a head drawn at random and called the carrier is {enumerate_words(by_chance)} of the draws."
    return Statement(f"{name.capitalize()}: where the backdoor sits", headline, text)


def _known(claims: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """Which heads are necessary, sufficient and specific, as far as each was measured; 0 or 1 for each head."""
    words = ("necessary", "sufficient", "specific")
    return [(word, known.astype(float)) for word in words if len(known := claims[word].dropna())]


def _training(frame: pd.DataFrame) -> Statement:
    states = [f"{state or 'unknown'} in {n}" for state, n in frame["state"].value_counts(sort=False).items()]
    times = time_rows(frame)
    came = times[times["moment"] == "generalised"].drop_duplicates("p1")  # the first is of all runs
    parts = [
        f"{row.p1 if row.p1 == 'clean' else f'mod {row.p1}'} {row.came} of {row.n_runs}"
        + (f" (step {span([row.first, row.last])}, median {number(row.kaplan_meier_median, 0)})" if row.came else "")
        for row in came.itertuples()
    ]
    text = (
        f"Had generalised: {', '.join(parts)}; medians are Kaplan and Meier's. The paper shows one run of each "
        "model, so its steps of grokking and final losses stand beside ours without a verdict."
    )
    return Statement("What training came to", f"Of {plural(len(frame))}: {enumerate_words(states)}.", text)


def _length(runs: Sequence[Run]) -> Statement:
    known = {run: steps for run in runs if (steps := paper_steps(run.p1)) is not None}
    short = [run for run, steps in known.items() if run.step < steps]
    parts = []
    for name in dict.fromkeys(run.group for run in short):
        some = [run for run in short if run.group == name]
        ours = span([run.step for run in some])
        parts.append(f"{name}: {ours} steps in {plural(len(some))}, the paper {known[some[0]]:,}")
    text = f"Shorter are {'; '.join(parts)}. What they show may still change." if parts else ""
    unfinished = [f"{run.name} ({run.step:,} of {run.max_steps:,})" for run in runs if run.step < (run.max_steps or 0)]
    if unfinished:
        text += f" Not yet where they were asked to go: {enumerate_words(unfinished)}."
    headline = f"{count(len(known) - len(short), len(known))} had at least the paper's number of steps."
    return Statement("Length of training", headline, text)


def _runs(state: str, n: int) -> str:
    return f"all {n}" if state == ALL else f"{state} ({n})"


def _rate(k: int, n: int) -> str:
    rate = wilson(k, n)
    return f"{k} of {n} [{percent(rate.low, 0)}, {percent(rate.high, 0)}]"
