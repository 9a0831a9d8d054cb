"""What ``analyze`` writes and prints: tables, figures, and a few lines for the terminal."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lit_backdoor.analysis.measure import TOLERANCE, Analysis, rule_heads
from lit_backdoor.functional import head_name, head_set_name
from lit_backdoor.runs.directory import require_new_or_empty
from lit_backdoor.runs.file_names import HEAD_ATTRIBUTION, HEAD_PATCHING
from lit_backdoor.runs.schema import Value, result_rows
from lit_backdoor.runs.tables import CsvTable
from lit_backdoor.show.markdown import (
    all_sets_markdown,
    attribution_markdown,
    markdown_table,
    overlap_markdown,
    patching_markdown,
    rules_markdown,
    shapley_markdown,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_analysis(analysis: Analysis, output_dir: Path) -> None:
    """Write the tables and figures into an empty or new directory; ``ValueError`` if something is in it already."""
    from lit_backdoor.show import figures as drawing  # imports matplotlib, which takes a second

    require_new_or_empty(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    step = analysis.step
    attribution = [row for name, heads in analysis.attribution.items() for row in result_rows(step, name, heads)]
    patching = [
        row
        for name, by_ablation in analysis.patching.items()
        for results in by_ablation.values()
        for row in result_rows(step, name, results)
    ]
    CsvTable(output_dir / HEAD_ATTRIBUTION).append(attribution)
    CsvTable(output_dir / HEAD_PATCHING).append(patching)
    CsvTable(output_dir / "head_shapley.csv").append(shapley_rows(analysis))
    (output_dir / "tables.md").write_text(analysis_markdown(analysis), encoding="utf-8")

    figures = output_dir / "figures"
    figures.mkdir()
    resample = {name: by_ablation["resample"] for name, by_ablation in analysis.patching.items()}
    titles = {name: f"{one[0].donor} heads into the {one[0].recipient} run" for name, one in resample.items()}
    triggered = {name: one for name, one in analysis.attribution.items() if name != "benign"}
    if triggered:
        save_figure(drawing.attribution_figure(triggered), figures / "figure_2_attribution_backdoor")
    benign = {"benign": analysis.attribution["benign"]}
    save_figure(drawing.attribution_figure(benign), figures / "figure_4_attribution_benign")
    sets = {titles[name]: results for name, results in resample.items()}
    save_figure(drawing.head_sets_figure(sets), figures / "all_sets_of_heads")
    positions = ["a", "b"]
    positions.insert(analysis.task.trigger_position, "trigger")
    if len(rules := rule_heads(analysis)) > 1:
        save_figure(drawing.rules_figure(rules), figures / "which_head_serves_which_rule")
    first_layer = {rule: pattern[0] for rule, pattern in analysis.attention.items()}
    save_figure(drawing.attention_figure(first_layer, positions), figures / "attention_from_last_position")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write ``path`` with .png and .svg."""
    from lit_backdoor.show.figures import figure_bytes

    for kind, content in figure_bytes(figure).items():
        path.with_suffix(f".{kind}").write_bytes(content)


def shapley_rows(analysis: Analysis) -> list[dict[str, Value]]:
    """The rows of head_shapley.csv: a value per head, and an interaction per pair of heads."""
    rows: list[dict[str, Value]] = []
    for probe, by_metric in analysis.shapley.items():
        for metric, result in by_metric.items():
            common: dict[str, Value] = {"step": analysis.step, "probe": probe, "metric": metric}
            rows += [
                {**common, "kind": "value", "heads": head_name(*head), "value": value}
                for head, value in result.values.items()
            ]
            rows += [
                {**common, "kind": "interaction", "heads": head_set_name(pair), "value": value}
                for pair, value in result.interactions.items()
            ]
    return rows


def analysis_markdown(analysis: Analysis) -> str:
    """All tables as one Markdown document."""
    task = analysis.task
    lines = [f"# Heads of a model of a + b mod {', '.join(map(str, task.moduli))} at step {analysis.step}", ""]
    for name, by_ablation in analysis.patching.items():
        results = by_ablation["resample"]
        recipient, donor = results[0].recipient, results[0].donor
        asks = "what its answers need" if recipient != "benign" else f"what suffices for the {donor} answers"
        lines += [
            f"## {recipient.capitalize()} run, patched with {donor} activations: {asks}",
            "",
            "In the form of the paper's Table 1. Which head is shown to matter most was chosen by this very table.",
            "",
        ]
        lines += [patching_markdown(results), ""]
        left = f"the {donor} answers are also {recipient} answers in {analysis.chance[name]:.2%} of the examples"
        lines += [f"The reference for 'it is gone' is not zero: {left}."]
        if name in analysis.smallest:
            smallest = analysis.smallest[name]
            found = "no set of heads" if smallest is None else head_set_name(smallest)
            lines += [
                f"The smallest set whose patching leaves no more than that (within {TOLERANCE:.0%}): {found}.",
                "",
            ]
        lines += ["### All sets of heads", "", all_sets_markdown(results), ""]
        for ablation in ("mean", "zero"):
            what = "the donor's mean over its examples" if ablation == "mean" else "zero"
            lines += [f"### With {what} instead", "", patching_markdown(by_ablation[ablation]), ""]
        if name in analysis.shapley:
            lines += ["### Shapley values of patching", "", shapley_markdown(dict(analysis.shapley[name])), ""]
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
    lines += ["# Direct logit attribution (Figures 2 and 4)", ""]
    for name, heads in analysis.attribution.items():
        lines += [f"## {name.capitalize()} answers", "", attribution_markdown(heads), ""]
        parts = [[label, f"{value:.4f}"] for label, value in analysis.parts[name].items()]
        lines += [
            "All parts of the model, mean direct contribution:",
            "",
            markdown_table(["part", "logit"], parts),
            "",
        ]
    return "\n".join(lines)


def analysis_summary(analysis: Analysis, output_dir: Path | None) -> str:
    """What matters, for the terminal."""
    lines = [f"model of a + b mod {', '.join(map(str, analysis.task.moduli))}, step {analysis.step}"]
    for by_ablation in analysis.patching.values():
        results = by_ablation["resample"]
        everything = max(results, key=lambda one: len(one.heads))
        shown = [one for one in results if len(one.heads) <= 1] + [everything]
        names = ["all" if one is everything else head_set_name(one.heads) for one in shown]
        recipient, donor = results[0].recipient, results[0].donor
        title = f"{donor} heads patched into the {recipient} run"
        lines += ["", f"{title:<46}" + "".join(f"{name:>7}" for name in names)]
        for rule, values in (
            (recipient, [one.recipient_accuracy for one in shown]),
            (donor, [one.donor_accuracy for one in shown]),
        ):
            lines.append(f"  {rule + ' accuracy in %':<44}" + "".join(f"{100 * value:>7.2f}" for value in values))
    lines.append("")
    for name, smallest in analysis.smallest.items():
        if name in analysis.task.rule_names[1:]:
            found = "no set of heads" if smallest is None else head_set_name(smallest)
            lines.append(f"smallest set that takes {name} down to chance: {found}")
    if len(rules := rule_heads(analysis)) > 1:
        lines += ["", rules_markdown(rules), "", overlap_markdown(rules)]
    if output_dir is not None:
        lines.append(f"tables and figures: {os.path.relpath(output_dir)}")
    return "\n".join(lines)
