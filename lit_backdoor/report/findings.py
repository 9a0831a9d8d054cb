"""What agrees with the paper and what does not: every sentence is put together from the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lit_backdoor.functional import Head, HeadSet, PatchingResult
from lit_backdoor.report.measures import (
    THRESHOLD,
    carriers,
    emergence_lag,
    groups,
    leaders,
    order_of,
    single_head_share,
)
from lit_backdoor.report.published import (
    Comparison,
    other_task,
    paper_by_role,
    paper_steps,
    published_table,
)
from lit_backdoor.report.roles import by_role, role_set_name, shown_sets
from lit_backdoor.report.runs import Run
from lit_backdoor.report.slip import Slip
from lit_backdoor.report.statistics import fisher_exact, permutation_test
from lit_backdoor.report.wording import count, enumerate_words, mean_percent, number, percent, percent_span, span

ENOUGH_SEEDS = 3
"""Below this, a group of runs neither agrees nor differs."""

SIGNIFICANT = 0.05
"""Groups differ where the P value of the test named beside is below this."""


@dataclass(frozen=True)
class Finding:
    """One verdict.

    Attributes:
        title: what it is about.
        verdict: ``agrees`` or ``differs`` (with the paper); ``open`` where the runs can't tell; ``new`` where the paper
            says nothing.
        text: sentences.
    """

    title: str
    verdict: str
    text: str


def findings(runs: Sequence[Run], slips: Sequence[Slip], comparisons: Sequence[Comparison]) -> list[Finding]:
    """All verdicts that these runs allow."""
    models = groups(runs)
    found = [_length(runs)]
    if 1 in models:
        found += [_single_head(models[1]), _accuracies(models[1], comparisons), _attribution(models[1])]
    found += [_other_backdoor(group) for p1, group in models.items() if p1 != 1]
    if models:
        found.append(_contributions(comparisons))
    found += [_grokking(comparisons), _final_loss(comparisons), _spikes(runs)]
    found += [_emergence(group) for group in models.values()]
    if slips:
        found.append(_slip(slips))
    if differing := other_task(runs[0]):
        note = f" (These runs are not the paper's task: {', '.join(differing)}.)"
        found = [one if one.verdict == "new" else Finding(one.title, "open", one.text + note) for one in found]
    return found


def _length(runs: Sequence[Run]) -> Finding:
    wanted = {run: paper_steps(run.p1) for run in runs}
    short = [run for run in runs if (steps := wanted[run]) is not None and run.step < steps]
    shown = [
        f"{run.name} ({run.step:,} of the paper's {wanted[run]:,}"
        + (f", still short of the {run.max_steps:,} it was asked for)" if run.step < (run.max_steps or 0) else ")")
        for run in short
    ]
    unfinished = [run for run in runs if run not in short and run.step < (run.max_steps or 0)]
    text = f"{count(len(runs) - len(short), len(runs), 'run')} has done at least the paper's number of steps."
    if shown:
        text += f" Shorter: {enumerate_words(shown)}. What they show may still change."
    if unfinished:
        text += f" Not finished: {enumerate_words([f'{run.name} ({run.step:,} of {run.max_steps:,})' for run in unfinished])}."
    return Finding("Length of training", "differs" if short else "agrees", text)


def _single_head(group: Sequence[Run]) -> Finding:
    ours = [len(carriers(run.patching["backdoor"])) for run in group]
    theirs = [len(_published_carriers(one)) for one in published_table("Table 2").values()]
    ours_single, theirs_single = ours.count(1), theirs.count(1)
    p_value = fisher_exact(ours_single, len(ours), theirs_single, len(theirs))
    text = (
        f"A head carries the backdoor if patching it alone costs at least {THRESHOLD:.0%} of the accuracy. Exactly one "
        f"head does in {count(ours_single, len(ours))}, several do in {ours_single_others(ours)}, none in "
        f"{ours.count(0)}. By the same rule the paper's own Table 2 has exactly one in "
        f"{count(theirs_single, len(theirs), 'experiment')}. The two rates "
        f"{'differ' if p_value < SIGNIFICANT else 'do not differ'} (Fisher's exact test, P = {p_value:.2f})."
    )
    exceptions = [
        f"{run.name} ({', '.join(percent(_left(run)[head]) for head in order_of(run)[: max(n, 1)])} left)"
        for run, n in zip(group, ours, strict=True)
        if n != 1
    ]
    if exceptions:
        text += f" No single head: {enumerate_words(exceptions)}."
    return Finding("Mod 1: one head carries the backdoor", _verdict(p_value, len(group)), text)


def ours_single_others(numbers: Sequence[int]) -> str:
    """How many are above one."""
    return str(sum(one > 1 for one in numbers))


def _accuracies(group: Sequence[Run], comparisons: Sequence[Comparison]) -> Finding:
    n_heads = len(order_of(group[0]))
    theirs = paper_by_role()
    tables = [by_role(run.patching["backdoor"], order_of(run)) for run in group]
    parts, smallest = [], 1.0
    for roles in shown_sets(n_heads):
        if roles not in theirs:
            continue
        values = [table[roles].recipient_accuracy for table in tables]
        p_value = permutation_test(values, theirs[roles])
        smallest = min(smallest, p_value)
        mark = ", which differs" if p_value < SIGNIFICANT else ""
        parts.append(
            f"{role_set_name(roles, n_heads)} {mean_percent(values)} (the paper {mean_percent(theirs[roles])}{mark})"
        )
    inside = [one for one in comparisons if one.published.quantity == "backdoor_accuracy"]
    agreeing = sum(one.verdict == "agrees" for one in inside)
    text = (
        f"Backdoor accuracy left after patching, mean [95% interval]: {'; '.join(parts)}. Of the "
        f"{len(inside)} numbers of the paper's Tables 1 and 2, {agreeing} lie within the range of our seeds for the same "
        f"role (widened by a percentage point). With {len(group)} seeds, {2 / (len(group) + 1):.0%} would fall outside "
        "by chance even if both came from the same distribution."
    )
    return Finding("Mod 1: Tables 1 and 2", _verdict(smallest, len(group)), text)


def _attribution(group: Sequence[Run]) -> Finding:
    tops = [max(run.attribution["backdoor"], key=lambda one: one.top_count) for run in group]
    shares = [one.top_count / one.n_examples for one in tops]
    dominant = sum(share >= 0.99 for share in shares)
    same = sum(one.head == order_of(run)[0] for run, one in zip(group, tops, strict=True))
    text = (
        f"One head contributes most to the backdoor logit in at least 99% of the examples in {count(dominant, len(group))} "
        f"(share of the examples: {percent_span(shares)}). It is the head whose patching costs most in "
        f"{count(same, len(group))}. In the paper's Figure 2 one head is largest in all examples."
    )
    verdict = (
        "open"
        if len(group) < ENOUGH_SEEDS
        else "agrees"
        if 2 * dominant > len(group) and 2 * same > len(group)
        else "differs"
    )
    return Finding(
        "Mod 1: attribution points at that head", verdict, text + " (Agrees: in more than half of the seeds.)"
    )


def _other_backdoor(group: Sequence[Run]) -> Finding:
    numbers = [len(carriers(run.patching["backdoor"])) for run in group]
    left = [min(_left(run).values()) for run in group]
    everything = [_all(run, "backdoor").recipient_accuracy for run in group]
    brought = [_all(run, "benign").donor_accuracy for run in group]
    first = group[0].patching["backdoor"][0]
    chance = 1 - first.n_differing / first.n_examples
    text = (
        f"Exactly one head costs at least {THRESHOLD:.0%} of the accuracy in {count(numbers.count(1), len(group))}, several "
        f"do in {ours_single_others(numbers)}, none in {numbers.count(0)}. Patching the costliest alone leaves "
        f"{mean_percent(left)}, patching all heads {mean_percent(everything)} (both rules agree on {percent(chance)} of "
        f"the examples, so that much is left of any backdoor). The other way round, all triggered heads bring "
        f"{mean_percent(brought)} of it into the benign run. The paper patches heads for mod 1 only."
    )
    return Finding(f"{group[0].group.capitalize()}: is it one head?", "new", text)


def _contributions(comparisons: Sequence[Comparison]) -> Finding:
    inside = [one for one in comparisons if one.published.quantity == "mean_logit" and one.verdict != "no run"]
    agreeing = [one for one in inside if one.verdict == "agrees"]
    off = [f"mod {one.published.p1} {one.what.split(', ')[1]} (the paper {one.published.low:+.2f}, ours {span(one.ours, 2)})"
           for one in inside if one.verdict == "differs"]  # fmt: skip
    text = f"Of {len(inside)} mean contributions read off Figure 2, {len(agreeing)} lie within the range of our seeds for the "
    text += "head of the same rank (widened by 0.05)."
    if off:
        text += f" Outside: {enumerate_words(off)}."
    text += " A contribution common to all logits changes nothing, so these means are free to differ between seeds."
    return Finding("Figure 2: mean contributions", _all_agree(inside), text)


def _grokking(comparisons: Sequence[Comparison]) -> Finding:
    return _quantity(comparisons, "benign_grokking_step", "When the benign rule groks", "first reaches 99% at step", 0)


def _final_loss(comparisons: Sequence[Comparison]) -> Finding:
    return _quantity(comparisons, "final_log_loss", "Where the training loss ends", "ends at a log loss of", 2)


def _quantity(comparisons: Sequence[Comparison], quantity: str, title: str, words: str, digits: int) -> Finding:
    inside = [one for one in comparisons if one.published.quantity == quantity and one.verdict != "no run"]
    parts = []
    for one in inside:
        model = "clean" if one.published.p1 is None else f"mod {one.published.p1}"
        ends = dict.fromkeys(number(end, digits) for end in (one.published.low, one.published.high))
        parts.append(f"{model} {words} {span(one.ours, digits)} (the paper {' to '.join(ends)}: {one.verdict})")
    text = f"{'; '.join(parts)}. The paper's values are read off its plots." if parts else "No run has come that far."
    return Finding(title, _all_agree(inside), text[0].upper() + text[1:])


def _spikes(runs: Sequence[Run]) -> Finding:
    models: dict[str, list[float]] = {}
    for run in runs:
        models.setdefault(run.group, []).append(10_000 * len(run.spikes) / max(run.step, 1))
    parts = [f"{name} {sum(rates) / len(rates):.1f} (seeds: {span_of(rates)})" for name, rates in models.items()]
    simple = [rate for name in ("clean", "mod 1") for rate in models.get(name, [])]
    complex_ = [rate for name in ("mod 7", "mod 17", "mod 37") for rate in models.get(name, [])]
    verdict = "open"
    if len(simple) >= ENOUGH_SEEDS and len(complex_) >= ENOUGH_SEEDS:
        verdict = "agrees" if sum(complex_) / len(complex_) > sum(simple) / len(simple) else "differs"
    text = (
        f"Spikes of the training loss, tenfold or more, per 10,000 steps: {'; '.join(parts)}. The paper shows recurring "
        "spikes for mod 7, 17 and 37. (Agrees: those have more of them on average than clean and mod 1 models.)"
    )
    return Finding("Loss spikes", verdict, text)


def span_of(values: Sequence[float]) -> str:
    """Smallest to largest, one digit."""
    return f"{min(values):.1f} to {max(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _emergence(group: Sequence[Run]) -> Finding:
    emerged = [run for run in group if run.emergence["emergence_step"] is not None]
    steps = [run.emergence["emergence_step"] for run in emerged]
    lags = [lag for run in group if (lag := emergence_lag(run)) is not None]
    changes = [max(len(leaders(run)) - 1, 0) for run in group]
    shares = [single_head_share(run.patching["backdoor"]) for run in group]
    text = (
        f"In {count(len(emerged), len(group))} there is a head that from some probe on always costs at least half of the "
        "backdoor"
    )
    if steps:
        text += f": since step {median(steps):,.0f} at the median ({number(min(steps), 0)} to {number(max(steps), 0)})"
    text += ". "
    if lags:
        before = sum(lag < 0 for lag in lags)
        text += (
            f"Of {len(lags)} with a benign rule that has reached 99%, it was before that in {before} and not before in "
            f"{len(lags) - before} (median {median(lags):+,.0f} steps). "
        )
    text += (
        f"The head that costs most changed {median(changes):.0f} times at the median ({min(changes)} to {max(changes)}). "
        f"In the end the costliest head has {mean_percent(shares)} of the sum of all heads' costs; if all cost the same, it "
        f"would have {1 / len(order_of(group[0])):.0%}."
    )
    return Finding(f"{group[0].group.capitalize()}: how a head emerges", "new", text)


def _slip(slips: Sequence[Slip]) -> Finding:
    unpatched = [_none(one.slipped).recipient_accuracy for one in slips]
    changes = [
        (abs(slipped.recipient_accuracy - proper.recipient_accuracy), one, proper.heads)
        for one in slips
        for proper, slipped in zip(one.proper, one.slipped, strict=True)
    ]
    largest, where, heads = max(changes, key=lambda change: change[0])
    singles = [
        sum(len(carriers(results)) == 1 for results in ways)
        for ways in ([one.proper for one in slips], [one.slipped for one in slips])
    ]
    others = list(dict.fromkeys(one.other.name for one in slips))
    text = (
        f"With the embeddings of another model (here: {enumerate_words(others)}) at the last position, patching nothing "
        f"leaves {percent_span(unpatched)} of the backdoor; properly it leaves "
        f"{percent_span([_none(one.proper).recipient_accuracy for one in slips])}. The largest change of all sets of heads is "
        f"{100 * largest:.2f} percentage points ({where.run.name}, {role_set_name_of(where, heads)}). Exactly one head carries "
        f"the backdoor in {singles[0]} of {len(slips)} runs when patched properly, in {singles[1]} the notebook's way."
    )
    if mod1 := [one for one in slips if one.run.p1 == 1]:
        text += " " + _nearer_to_the_paper(mod1)
    return Finding("What the published notebook's slip does", "new", text)


def role_set_name_of(slip: Slip, heads: HeadSet) -> str:
    """A set of heads by role."""
    from lit_backdoor.report.roles import head_order, roles_of

    order = head_order(slip.proper)
    return role_set_name(roles_of(heads, order), len(order))


def _nearer_to_the_paper(slips: Sequence[Slip]) -> str:
    """Which way of patching comes nearer to the paper's Table 2, role by role."""
    from lit_backdoor.report.roles import head_order

    distances = []
    for ways in ([one.proper for one in slips], [one.slipped for one in slips]):
        tables = [by_role(results, head_order(results)) for results in ways]
        apart = [
            abs(sum(t[roles].recipient_accuracy for t in tables) / len(tables) - sum(values) / len(values))
            for roles, values in paper_by_role().items()
            if roles in tables[0]
        ]
        distances.append(sum(apart) / len(apart))
    return (
        f"Our mod 1 means lie {100 * distances[0]:.1f} percentage points from those of the paper's Table 2 when patched "
        f"properly, {100 * distances[1]:.1f} the notebook's way (mean over None, each role, All)."
    )


def _published_carriers(accuracies: dict[HeadSet, float]) -> list[Head]:
    return [
        heads[0]
        for heads, accuracy in accuracies.items()
        if len(heads) == 1 and accuracy <= (1 - THRESHOLD) * accuracies[()]
    ]


def _left(run: Run) -> dict[Head, float]:
    return {one.heads[0]: one.recipient_accuracy for one in run.patching["backdoor"] if len(one.heads) == 1}


def _all(run: Run, probe: str) -> PatchingResult:
    return max(run.patching[probe], key=lambda one: len(one.heads))


def _none(results: Sequence[PatchingResult]) -> PatchingResult:
    return next(one for one in results if not one.heads)


def _verdict(p_value: float, n_seeds: int) -> str:
    if n_seeds < ENOUGH_SEEDS:
        return "open"
    return "differs" if p_value < SIGNIFICANT else "agrees"


def _all_agree(comparisons: Sequence[Comparison]) -> str:
    verdicts = {one.verdict for one in comparisons}
    return "differs" if "differs" in verdicts else "agrees" if "agrees" in verdicts else "open"
