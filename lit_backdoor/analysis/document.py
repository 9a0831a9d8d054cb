"""All tables of ``analyze`` as one Markdown document."""

from collections.abc import Iterable

from lit_backdoor.analysis.measure import TOLERANCE, Analysis, ProbeAnalysis, rule_heads
from lit_backdoor.functional import head_set_name
from lit_backdoor.show.markdown import (
    all_sets_markdown,
    attribution_markdown,
    markdown_table,
    overlap_markdown,
    patching_markdown,
    rules_markdown,
    shapley_markdown,
)
from lit_backdoor.show.markdown_mechanism import (
    attention_markdown,
    neurons_markdown,
    paths_markdown,
    progress_markdown,
    removal_markdown,
    specificity_markdown,
    weak_in_words,
)

REMOVAL_NOTE = (
    "Accuracy of the backdoor left, points of the benign accuracy lost, and the optimizer steps of training with 1% "
    "poisoned examples until the backdoor is back at 99% (0: it never left). A donor's edges see the benign trigger "
    "all the while; weights that were changed train like all others."
)


def analysis_markdown(analysis: Analysis) -> str:
    """All tables as one Markdown document."""
    step = "an unknown step (0 in the tables)" if analysis.step is None else f"step {analysis.step}"
    lines = [f"# Heads of a model of {analysis.title} at {step}", ""]
    for name, of_probe in analysis.probes.items():
        suffices = of_probe.donor in analysis.of_backdoors
        lines += _patching(analysis.label(name), of_probe, suffices, bool(analysis.progress))
    if len(rules := rule_heads(analysis)) > 1:
        lines += [
            "# Which head serves which rule",
            "",
            "Shapley values of each rule's accuracy, in percentage points: *needs*, what patching benign activations "
            "into the rule's run costs; *suffices*, what patching the rule's activations into the benign run brings.",
            "",
            rules_markdown(rules),
            "",
            "How far two rules rest on the same heads: the sum over the heads of the smaller of their two shares (0: "
            "no head serves both; 1: all serve both in equal parts), and the smallest sets that take each to chance.",
            "",
            overlap_markdown(rules),
            "",
        ]
    lines += _mechanism(analysis)
    lines += [f"# Direct logit attribution{' (Figures 2 and 4)' if analysis.progress else ''}", ""]
    for name, of_probe in analysis.of_rules.items():
        if not of_probe.attribution:
            continue
        lines += [f"## {name.capitalize()} answers", "", attribution_markdown(of_probe.attribution), ""]
        parts = [[label, f"{value:.4f}"] for label, value in of_probe.parts.items()]
        lines += [
            "All parts of the model, mean direct contribution:",
            "",
            markdown_table(["part", "logit"], parts),
            "",
        ]
    not_measured = {
        (what, why): None for of_probe in analysis.probes.values() for what, why in of_probe.not_measured.items()
    }
    if not_measured:
        lines += ["# Not measured", "", *(f"- {what}: {why}" for what, why in not_measured), ""]
    return "\n".join(lines)


def _patching(label: str, of_probe: ProbeAnalysis, suffices: bool, as_paper: bool) -> Iterable[str]:
    """What patching heads does to one probe.

    Args:
        label: what its title begins with.
        suffices: whether it asks what suffices for the donor's answers, instead of what the recipient's need.
        as_paper: whether the tables have the paper's form.
    """
    asks = f"what suffices for the {of_probe.donor} answers" if suffices else "what its answers need"
    form = "In the form of the paper's Table 1. " if as_paper else ""
    resample = of_probe.patching["resample"]
    lines = [
        f"## {label}{of_probe.recipient.capitalize()} run, patched with {of_probe.donor} activations: {asks}",
        "",
        f"{form}Which head is shown to matter most was chosen by this very table.",
        "",
        patching_markdown(resample, as_paper),
        "",
        f"The reference for 'it is gone' is not zero: the {of_probe.donor} answers are also {of_probe.recipient} "
        f"answers in {of_probe.chance:.2%} of the examples.",
    ]
    if of_probe.shapley:
        smallest = "no set of heads" if of_probe.smallest is None else head_set_name(of_probe.smallest)
        lines += [f"The smallest set whose patching leaves no more than that (within {TOLERANCE:.0%}): {smallest}.", ""]
    lines += ["### All sets of heads", "", all_sets_markdown(resample), ""]
    for ablation in ("mean", "zero"):
        what = "the donor's mean over its examples" if ablation == "mean" else "zero"
        lines += [f"### With {what} instead", "", patching_markdown(of_probe.patching[ablation], as_paper), ""]
    if of_probe.shapley:
        lines += ["### Shapley values of patching", "", shapley_markdown(dict(of_probe.shapley)), ""]
    return lines


def _mechanism(analysis: Analysis) -> Iterable[str]:
    """Paths, attention, specificity, neurons and waves."""
    lines = [
        "# Paths",
        "",
        "Edges in the first column see the donor's run, everything else the recipient's. Edges are not additive: a set "
        "is another question than its members.",
        "",
    ]
    for name, of_probe in ((name, each) for name, each in analysis.probes.items() if each.paths):
        lines += [
            f"## {analysis.label(name)}{of_probe.recipient.capitalize()} run, edges see the {of_probe.donor} run",
            "",
            paths_markdown(of_probe.paths),
            "",
        ]
        if (n := of_probe.paths[0].n_examples) < (whole := of_probe.unpatched.n_examples):
            lines += [f"Measured on {n} of the {whole} examples, drawn at random.", ""]
    lines += ["# Attention from the position that is read", ""]
    for name, of_probe in (analysis.asked or analysis.of_rules).items():
        run = f"{analysis.label(name)}{of_probe.recipient.capitalize()} run"
        lines += [f"## {run}, and the shift from the {of_probe.donor} run", ""]
        lines += [attention_markdown(of_probe.attention), ""]
    if analysis.asked:
        lines += [
            "# Specificity",
            "",
            "What each head costs the rule when it gets the donor's activation, and the donor's rule when it is "
            "ablated to its mean in the donor's run: shares of the accuracy above the floor.",
            "",
        ]
    for name, of_probe in analysis.probes.items() if analysis.asked else ():
        lines += [f"## {name}", "", specificity_markdown(of_probe.specificity), ""]
        lines += [f"{name}: {of_probe.absence}.", ""] if of_probe.absence else []
    if neurons := {
        name: of_probe.neurons for name, of_probe in analysis.probes.items() if of_probe.neurons is not None
    }:
        lines += ["# Neurons", "", neurons_markdown({name: result.counts for name, result in neurons.items()}), ""]
    if analysis.progress:
        lines += ["# Waves and gradients of each rule", "", progress_markdown(analysis.progress), ""]
    if analysis.removal:
        lines += ["# Removing a backdoor", "", REMOVAL_NOTE, ""]
    for name, results in analysis.removal.items():
        lines += [f"## {name}", "", removal_markdown(results), "", f"{weak_in_words(results).capitalize()}.", ""]
    return lines
