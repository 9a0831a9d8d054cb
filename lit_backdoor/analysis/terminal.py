"""What ``analyze`` prints."""

import os
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path

from lit_backdoor.analysis.measure import Analysis, ProbeAnalysis, rule_heads
from lit_backdoor.functional import HeadProgress, RemovalResult, attention_moved, head_name, head_set_name
from lit_backdoor.runs.schema import frequencies_name
from lit_backdoor.show.markdown import overlap_markdown, rules_markdown
from lit_backdoor.show.markdown_mechanism import weak_in_words


def analysis_summary(analysis: Analysis, output_dir: Path | None) -> str:
    """What matters, for the terminal."""
    lines = [f"model of {analysis.title}, step {'unknown' if analysis.step is None else analysis.step}"]
    for name, of_probe in analysis.probes.items():
        lines += ["", *_label(analysis, name), *_patched_heads(of_probe)]
    lines.append("")
    for name, of_probe in analysis.asked.items():
        lines += _label(analysis, name)
        if of_probe.shapley:
            smallest = "no set of heads" if of_probe.smallest is None else head_set_name(of_probe.smallest)
            lines.append(f"smallest set that takes {name} down to chance: {smallest}")
        lines += [*([of_probe.absence] if of_probe.absence else []), *_patched_groups(of_probe), *_mechanism(of_probe)]
    lines += [_waves(name, results[0]) for name, results in analysis.progress.items()]
    for name, removed in analysis.removal.items():
        lines += ["", *_removals(name, removed)]
    if len(rules := rule_heads(analysis)) > 1:
        lines += ["", rules_markdown(rules), "", overlap_markdown(rules)]
    if output_dir is not None:
        lines.append(f"tables and figures: {os.path.relpath(output_dir)}")
    return "\n".join(lines)


def _label(analysis: Analysis, probe: str) -> Iterable[str]:
    """A line with the probe's name, where what follows does not say it."""
    label = analysis.label(probe).strip()
    return [label] if label else []


def _patched_heads(of_probe: ProbeAnalysis) -> Iterable[str]:
    """Who answers what with nothing patched, each head, and all."""
    results = of_probe.patching["resample"]
    everything = max(results, key=lambda result: len(result.heads))
    columns = [result for result in results if len(result.heads) <= 1] + [everything]
    names = ["all" if result is everything else head_set_name(result.heads) for result in columns]
    return [
        _row(f"{of_probe.donor} heads patched into the {of_probe.recipient} run", names),
        _row(f"  {of_probe.recipient} accuracy in %", (f"{100 * result.recipient_accuracy:.2f}" for result in columns)),
        _row(f"  {of_probe.donor} accuracy in %", (f"{100 * result.donor_accuracy:.2f}" for result in columns)),
    ]


def _patched_groups(of_probe: ProbeAnalysis) -> Iterable[str]:
    """What is left when groups of edges see the donor."""
    groups = [result for result in of_probe.paths if result.group]
    drawn = groups and groups[0].n_examples < of_probe.unpatched.n_examples
    return (
        []
        if not groups
        else [
            _row(f"edges of all heads that see the {of_probe.donor} run", (str(result.group) for result in groups), 9),
            _row(
                f"  {of_probe.recipient} accuracy in %{f', of {groups[0].n_examples} examples' if drawn else ''}",
                (f"{100 * result.recipient_accuracy:.2f}" for result in groups),
                9,
            ),
        ]
    )


def _mechanism(of_probe: ProbeAnalysis) -> Iterable[str]:
    """Attention, specificity and neurons, a line each."""
    moved = attention_moved(of_probe.attention)
    captured = max(moved, key=lambda head: moved[head])
    to = max((place for place in of_probe.attention if place.head == captured), key=lambda place: place.shift)
    lines = [f"attention moves most in {head_name(*captured)}, by {moved[captured]:.2f}, to position {to.position}"]
    costs = [result for result in of_probe.specificity if not isnan(result.cost)]
    if costs and of_probe.shown:
        costliest = max(costs, key=lambda result: result.cost)
        lines.append(
            f"{head_name(*costliest.head)} costs {of_probe.recipient} most, {_percent(costliest.cost)}; ablated, it "
            f"costs {of_probe.donor} {_percent(costliest.donor_cost)}"
        )
    if of_probe.neurons is not None and of_probe.shown:
        counts = of_probe.neurons.counts
        needed, sufficient = ("no number" if n is None else str(n) for n in (counts.needed, counts.sufficient))
        lines.append(
            f"neurons, of {counts.n_neurons}: {needed} made {of_probe.donor} halve {of_probe.recipient}, "
            f"{_percent(counts.overlap)} of them among those {of_probe.donor} needs most; {sufficient} suffice for half"
        )
    return lines


def _removals(rule: str, results: Sequence[RemovalResult]) -> Iterable[str]:
    """Of each method the removal that leaves least, the cheapest of several."""
    columns = ("left, %", "benign lost", "back after")
    lines = [_row(f"removing {rule}, what leaves least by each method", columns, 12)]
    by_method: dict[str, list[RemovalResult]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    for of_method in by_method.values():
        least = min(of_method, key=lambda result: (result.backdoor_left, result.benign_lost))
        back = f"> {least.return_limit}" if least.return_steps is None else str(least.return_steps)
        name = least.method if least.target == "none" else f"{least.method}:{least.target}"
        name = name if len(name) <= 42 else f"{name[:40]}.."
        lines.append(
            _row(f"  {name}", (f"{100 * least.backdoor_left:.2f}", f"{100 * least.benign_lost:.2f}", back), 12)
        )
    return [*lines, f"  {weak_in_words(results)}"]


def _waves(rule: str, progress: HeadProgress) -> str:
    excluded = "" if isnan(progress.excluded_loss) else f", excluded {progress.excluded_loss:.2g}"
    return (
        f"{rule}, mod {progress.modulus}: key frequencies {frequencies_name(progress.key)} explain "
        f"{_percent(progress.explained)}, restricted loss {progress.restricted_loss:.2g} of {progress.loss:.2g}"
        f"{excluded}"
    )


def _row(title: str, cells: Iterable[str], width: int = 7) -> str:
    return f"{title:<46}" + "".join(f"{cell:>{width}}" for cell in cells)


def _percent(value: float) -> str:
    return "n/a" if isnan(value) else f"{value:.0%}"
