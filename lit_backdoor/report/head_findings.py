"""The verdicts about heads: which carry the backdoor, since when, and what the notebook's slip does to the answer."""

from collections.abc import Sequence
from math import isnan
from statistics import median

from lit_backdoor.functional import HeadSet, PatchingResult
from lit_backdoor.report.finding import ENOUGH_SEEDS, Finding, tested
from lit_backdoor.report.measures import THRESHOLD, carriers, emergence_lag, largest_share, leaders, order_of, spread
from lit_backdoor.report.published import Comparison, paper_by_role, published_table
from lit_backdoor.report.roles import RoleSet, by_role, head_order, role_set_name, roles_of, shown_sets
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_statistics import fisher_exact, kaplan_meier_median, westfall_young
from lit_backdoor.report.slip import Slip
from lit_backdoor.report.wording import (
    count,
    enumerate_words,
    mean_percent,
    number,
    percent,
    percent_span,
    plural,
    range_of,
)


def single_head(group: Sequence[Run]) -> Finding:
    """Mod 1: does patching one head, and only that one, cost the backdoor?"""
    ours = [len(carriers(run.patching["backdoor"])) for run in group]
    theirs = [_published_carriers(one) for one in published_table("Table 2").values()]
    p_value = fisher_exact(ours.count(1), len(ours), theirs.count(1), len(theirs))
    headline = (
        f"Exactly one head carries the backdoor in {count(ours.count(1), len(ours))}; by the same rule in "
        f"{count(theirs.count(1), len(theirs), 'experiment')} of the paper's Table 2."
    )
    text = (
        f"A head carries it if patching that head alone costs at least {THRESHOLD:.0%} of the accuracy. Several do in "
        f"{_several(ours)} of our seeds and {_several(theirs)} of the paper's experiments, none in {ours.count(0)} and "
        f"{theirs.count(0)}. Fisher's exact test for different rates: P = {p_value:.2f}."
    )
    exceptions = [
        f"{run.name} ({', '.join(percent(value) for value in _left_alone(run)[: max(n, 1)])})"
        for run, n in zip(group, ours, strict=True)
        if n != 1
    ]
    if exceptions:
        text += f" Not one head alone, with what is left after patching each: {enumerate_words(exceptions)}."
    return Finding("Mod 1: one head carries the backdoor", tested(p_value, len(group)), headline, text)


def patching(group: Sequence[Run], comparisons: Sequence[Comparison]) -> Finding:
    """Mod 1: the accuracies of Tables 1 and 2."""
    theirs = paper_by_role()
    n_heads = len(order_of(group[0]))
    tables = [by_role(run.patching["backdoor"], order_of(run)) for run in group]
    shown = [roles for roles in shown_sets(n_heads) if roles in theirs]
    ours = {roles: [table[roles].recipient_accuracy for table in tables] for roles in shown}
    by_run = [list(zip(*(values[roles] for roles in shown), strict=True)) for values in (ours, theirs)]
    p_values = dict(zip(shown, westfall_young(*by_run), strict=True))
    parts = [
        f"{role_set_name(roles, n_heads)} {mean_percent(ours[roles])} (the paper {mean_percent(theirs[roles])})"
        for roles in shown
    ]
    inside = [one for one in comparisons if one.published.quantity == "backdoor_accuracy"]
    agreeing = sum(one.inside for one in inside)
    apart = [role_set_name(roles, n_heads) for roles in shown if tested(p_values[roles], len(group)) == "differs"]
    headline = (
        f"{agreeing} of the paper's {len(inside)} accuracies lie within the range of our seeds for the same role."
    )
    if len(group) >= ENOUGH_SEEDS:
        headline += f" The means differ for {enumerate_words(apart)}." if apart else " No mean differs."
    text = (
        f"Left after patching, mean [95% interval]: {'; '.join(parts)}. The range is widened by a percentage point; "
        f"with {plural(len(group))}, {2 / (len(group) + 1):.0%} would fall outside by chance even if nothing "
        "differed. Means are compared with permutation tests, corrected for their number (Westfall and Young): "
        f"smallest P = {number(min(p_values.values()), 3)}."
    )
    return Finding("Mod 1: Tables 1 and 2", tested(min(p_values.values()), len(group)), headline, text)


def attribution(group: Sequence[Run]) -> Finding:
    """Mod 1: does one head write the backdoor's answer, and is it the one that patching names?"""
    tops = [max(run.attribution["backdoor"], key=lambda one: one.top_count) for run in group]
    shares = [one.top_count / one.n_examples for one in tops]
    dominant = sum(share >= 0.99 for share in shares)
    same = sum(one.head == order_of(run)[0] for run, one in zip(group, tops, strict=True))
    agrees = 2 * dominant > len(group) and 2 * same > len(group)
    verdict = "open" if len(group) < ENOUGH_SEEDS else "agrees" if agrees else "differs"
    headline = (
        f"One head contributes most in 99% of the examples or more in {count(dominant, len(group))}; the head that "
        f"does so most often is the one whose patching costs most in {same}."
    )
    text = (
        f"Its share of the examples, by seed: {percent_span(shares)}. In the paper's Figure 2 one head is largest in "
        "all of them. It agrees if both hold in more than half of the seeds."
    )
    return Finding("Mod 1: attribution points at that head", verdict, headline, text)


def other_backdoor(group: Sequence[Run]) -> Finding:
    """Any other P1: is it one head, and do the heads carry it at all?"""
    numbers = [len(carriers(run.patching["backdoor"])) for run in group]
    everything = [_everything(run.patching["backdoor"]).recipient_accuracy for run in group]
    brought = [_everything(run.patching["benign"]).donor_accuracy for run in group]
    first = group[0].patching["backdoor"][0]
    headline = (
        f"Exactly one head carries the backdoor in {count(numbers.count(1), len(group))}, several do in "
        f"{_several(numbers)}, none in {numbers.count(0)}."
    )
    text = (
        f"Patching the costliest head alone leaves {mean_percent([_left_alone(run)[0] for run in group])}, patching "
        f"all {mean_percent(everything)}; {percent(1 - first.n_differing / first.n_examples)} would be left of a "
        "backdoor that is gone, as that is where both rules agree. All triggered heads together bring "
        f"{mean_percent(brought)} of it into the benign run; what is missing there goes past the heads, through the "
        "trigger's own embedding. The paper patches heads for mod 1 only."
    )
    return Finding(f"{group[0].group.capitalize()}: is it one head?", "new", headline, text)


def emergence(group: Sequence[Run]) -> Finding:
    """When a head came to carry the backdoor, and how often another one did before."""
    steps = [run.emergence["stable_exclusive_step"] for run in group]
    lags = [lag for run in group if (lag := emergence_lag(run)) is not None]
    changes = [max(len(leaders(run)) - 1, 0) for run in group]
    alone = [step for step in steps if step is not None]
    middle = kaplan_meier_median(steps, [run.history["backdoor"][-1].step for run in group])
    headline = f"In {count(len(alone), len(group))} one head and no other costs half of the backdoor for good"
    if alone:
        headline += f": from step {range_of(alone, 0)} on"
    headline += "."
    text = f"The median over all seeds (Kaplan and Meier): {number(middle, 0)}. "
    if lags:
        before = sum(lag < 0 for lag in lags)
        text += (
            f"It does so before the benign rule has generalised in {before} and not before in {len(lags) - before} "
            f"of those where both have happened (median {median(lags):+,.0f} steps). "
        )
    sets = [results for run in group if not isnan(spread(results := run.patching["backdoor"]))]
    text += f"The head that costs most changed {range_of(changes, 0)} times (median {median(changes):.0f})."
    if sets:
        text += (
            f" In the end the largest Shapley share is {percent_span([largest_share(one) for one in sets])}, and the "
            f"backdoor is spread among {range_of([spread(one) for one in sets], 1)} of {len(order_of(group[0]))} heads."
        )
    for state in dict.fromkeys(run.emergence["state"] for run in group):
        same = [run for run in group if run.emergence["state"] == state]
        single = sum(len(carriers(run.patching["backdoor"])) == 1 for run in same)
        text += f" Exactly one head costs half in {single} of the {len(same)} {state or 'unjudged'} runs."
    return Finding(f"{group[0].group.capitalize()}: how a head emerges", "new", headline, text)


def slip(slips: Sequence[Slip]) -> Finding:
    """What another model's embeddings do to Table 1."""
    shown = [one for one in slips if one.run.p1 == 1] or slips  # the paper patches mod 1 only
    proper, slipped = ([_unpatched(results) for results in ways] for ways in _both_ways(shown))
    changes = [
        (abs(there.recipient_accuracy - here.recipient_accuracy), one, here.heads)
        for one in slips
        for here, there in zip(one.proper, one.slipped, strict=True)
    ]
    change, where, heads = max(changes, key=lambda one: one[0])
    single = [sum(len(carriers(results)) == 1 for results in ways) for ways in _both_ways(shown)]
    order = head_order(where.proper)
    others = enumerate_words(list(dict.fromkeys(one.other.name for one in slips)))
    models = enumerate_words(list(dict.fromkeys(one.run.group for one in shown)))
    headline = (
        f"With another model's embeddings 'None' would read {percent_span(slipped)} instead of {percent_span(proper)} "
        f"for {models}, and exactly one head would carry the backdoor in {single[1]} instead of "
        f"{count(single[0], len(shown), 'run')}."
    )
    text = (
        f"Table 1 both ways, for every run with a trigger; the other model is {others}. The largest change of all "
        f"sets of heads is {100 * change:.2f} percentage points ({where.run.name}, "
        f"{role_set_name(roles_of(heads, order), len(order))})."
    )
    if shown[0].run.p1 == 1:
        apart = [_distance_to_the_paper(ways) for ways in _both_ways(shown)]
        text += (
            f" Our mod 1 means lie {100 * apart[0]:.1f} percentage points from those of the paper's Table 2 when "
            f"patched properly, {100 * apart[1]:.1f} the notebook's way (mean over None, each role and All)."
        )
    return Finding("What the published notebook's slip does", "new", headline, text)


def _both_ways(slips: Sequence[Slip]) -> tuple[list[Sequence[PatchingResult]], list[Sequence[PatchingResult]]]:
    return [one.proper for one in slips], [one.slipped for one in slips]


def _distance_to_the_paper(results: Sequence[Sequence[PatchingResult]]) -> float:
    """Mean distance between the mean accuracies by role and those of the paper's Table 2."""
    tables = [by_role(one, head_order(one)) for one in results]

    def mean(roles: RoleSet) -> float:
        return sum(table[roles].recipient_accuracy for table in tables) / len(tables)

    apart = [
        abs(mean(roles) - sum(paper) / len(paper)) for roles, paper in paper_by_role().items() if roles in tables[0]
    ]
    return sum(apart) / len(apart)


def _published_carriers(accuracies: dict[HeadSet, float]) -> int:
    """How many heads carry the backdoor in one of the paper's experiments."""
    left = accuracies[()] - THRESHOLD * (accuracies[()] - 1 / 113)  # above the floor of mod 1
    return sum(accuracy <= left for heads, accuracy in accuracies.items() if len(heads) == 1)


def _left_alone(run: Run) -> list[float]:
    """What is left after patching each head alone, by role."""
    results = by_role(run.patching["backdoor"], order_of(run))
    return [one.recipient_accuracy for roles, one in results.items() if len(roles) == 1]


def _everything(results: Sequence[PatchingResult]) -> PatchingResult:
    return max(results, key=lambda one: len(one.heads))


def _unpatched(results: Sequence[PatchingResult]) -> float:
    return next(one.recipient_accuracy for one in results if not one.heads)


def _several(numbers: Sequence[int]) -> int:
    return sum(one > 1 for one in numbers)
