"""What agrees with the paper and what does not: every sentence is put together from the data."""

from collections.abc import Sequence

from lit_backdoor.report import head_findings
from lit_backdoor.report.finding import ENOUGH_SEEDS, Finding
from lit_backdoor.report.measures import groups, large_spikes
from lit_backdoor.report.published import Comparison, other_task, paper_steps
from lit_backdoor.report.runs import Run
from lit_backdoor.report.slip import Slip
from lit_backdoor.report.wording import count, enumerate_words, number, plural, range_of


def findings(runs: Sequence[Run], slips: Sequence[Slip], comparisons: Sequence[Comparison]) -> list[Finding]:
    """All verdicts that these runs allow."""
    models = groups(runs)
    found = []
    if 1 in models:
        found += [head_findings.single_head(models[1]), head_findings.patching(models[1], comparisons)]
        found += [head_findings.attribution(models[1])]
    found += [head_findings.other_backdoor(group) for p1, group in models.items() if p1 != 1]
    found += [head_findings.emergence(group) for group in models.values()]
    if slips:
        found.append(head_findings.slip(slips))
    found += [
        _contributions(comparisons),
        _grokking(comparisons),
        _final_loss(comparisons),
        _spikes(runs),
        _length(runs),
    ]
    if other_task(runs[0]):
        found = [one if one.verdict == "new" else one.reopened() for one in found]
    return found


def _length(runs: Sequence[Run]) -> Finding:
    judged = [run for run in runs if paper_steps(run.p1) is not None]
    enough = [run for run in judged if run.step >= (paper_steps(run.p1) or 0)]
    headline = f"{count(len(enough), len(judged), 'run')} had at least the paper's number of steps."
    parts = []
    for name in dict.fromkeys(run.group for run in judged if run not in enough):
        short = [run for run in judged if run.group == name and run not in enough]
        steps = range_of([run.step for run in short], 0)
        part = f"{name}: {steps} steps in {plural(len(short), 'run')}, the paper {paper_steps(short[0].p1):,}"
        parts.append(part)
    text = f"Shorter are {'; '.join(parts)}. What they show may still change." if parts else ""
    unfinished = [f"{run.name} ({run.step:,} of {run.max_steps:,})" for run in runs if run.step < (run.max_steps or 0)]
    if unfinished:
        text += f" Not yet where they were asked to go: {enumerate_words(unfinished)}."
    return Finding("Length of training", "differs" if parts else "agrees" if judged else "open", headline, text)


def _contributions(comparisons: Sequence[Comparison]) -> Finding:
    inside = [one for one in comparisons if one.published.quantity == "mean_logit" and one.ours.n]
    agreeing = sum(one.inside for one in inside)
    headline = f"{agreeing} of {len(inside)} mean contributions lie within the range of our seeds."
    off = [
        f"mod {one.published.p1}, {one.what.split(', ')[1]} (the paper {one.published.low:+.2f}, ours "
        f"{range_of([one.ours.smallest, one.ours.largest])})"
        for one in inside
        if not one.inside
    ]
    text = "Read off Figure 2, compared with the head of the same rank, the range widened by 0.05."
    if off:
        text += f" Outside: {'; '.join(off)}."
    text += (
        " What a head adds to all logits alike changes no answer, so these means are free to differ between runs; "
        "attribution.csv has them centred too."
    )
    return Finding("Figure 2: mean contributions", _all_agree(inside), headline, text)


def _grokking(comparisons: Sequence[Comparison]) -> Finding:
    inside = [one for one in comparisons if one.published.quantity == "benign_grokking_step" and one.ours.n]
    return _by_model(
        "When the benign rule groks",
        inside,
        "First at 99% and a logarithmic validation loss below -5: ",
        0,
    )


def _final_loss(comparisons: Sequence[Comparison]) -> Finding:
    inside = [one for one in comparisons if one.published.quantity == "final_log_loss" and one.ours.n]
    return _by_model("Where the training loss ends", inside, "Natural logarithm of the loss in the end: ", 1)


def _by_model(title: str, inside: Sequence[Comparison], words: str, digits: int) -> Finding:
    parts = []
    for one in inside:
        ours = range_of([one.ours.smallest, one.ours.largest], digits)
        parts.append(f"{one.model} {ours} (the paper {range_of([one.published.low, one.published.high], digits)})")
    agreeing = sum(one.inside for one in inside)
    headline = f"{count(agreeing, len(inside), 'model')} as in the paper." if inside else "No run has come that far."
    text = f"{words}{'; '.join(parts)}. The paper's values are read off its Figure 3." if parts else ""
    return Finding(title, _all_agree(inside), headline, text)


def _spikes(runs: Sequence[Run]) -> Finding:
    rates: dict[str, list[float]] = {}
    for run in runs:
        rates.setdefault(run.group, []).append(10_000 * large_spikes(run) / max(run.step, 1))
    means = [f"{name} {number(sum(one) / len(one), 1)}" for name, one in rates.items()]
    simple = [rate for name in ("clean", "mod 1") for rate in rates.get(name, [])]
    complicated = [rate for name in ("mod 7", "mod 17", "mod 37") for rate in rates.get(name, [])]
    verdict = "open"
    if len(simple) >= ENOUGH_SEEDS and len(complicated) >= ENOUGH_SEEDS:
        more = sum(complicated) / len(complicated) > sum(simple) / len(simple)
        verdict = "agrees" if more else "differs"
    text = (
        f"By seed: {'; '.join(f'{name} {range_of(one, 1)}' for name, one in rates.items())}. A spike is a peak of "
        "the training loss that stands out tenfold, on either side. The paper "
        "shows recurring spikes for mod 7, 17 and 37; it agrees if those "
        "models have more of them on average than clean and mod 1 models."
    )
    return Finding("Loss spikes", verdict, f"Per 10,000 steps: {enumerate_words(means)}.", text)


def _all_agree(comparisons: Sequence[Comparison]) -> str:
    verdicts = {one.verdict for one in comparisons}
    return "differs" if "differs" in verdicts else "open" if verdicts != {"agrees"} else "agrees"
