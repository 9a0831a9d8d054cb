"""The tables and figures that ``analyze`` writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_backdoor.analysis.document import analysis_markdown
from lit_backdoor.analysis.measure import Analysis, ProbeAnalysis, rule_heads
from lit_backdoor.functional import head_name, head_set_name
from lit_backdoor.runs.file_names import (
    ATTENTION,
    HEAD_ATTRIBUTION,
    HEAD_PATCHING,
    HEAD_SPECIFICITY,
    NEURONS,
    PATH_PATCHING,
    PROGRESS_MEASURES,
    SUMMARY,
)
from lit_backdoor.runs.schema import Value, result_rows
from lit_backdoor.runs.tables import CsvTable, replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DOCUMENT = "tables.md"
FIGURES = "figures"
REMOVAL_FIGURE = "removal"
"""It is written last of all."""


def write_analysis(analysis: Analysis, output_dir: Path, origin: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Write the tables and figures into an empty or new directory, or over those of the same analysis.

    Args:
        analysis: without removals, which :func:`write_removals` adds.
        output_dir: new or empty, or one in which the same command :func:`was_stopped`; the caller makes sure.
        origin: where the weights came from, and their `sha256`, for summary.json.
        options: what decided what was measured, for summary.json too. It is written first: with it, the same command
            goes on after a kill.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    summary = summary_record(analysis, origin) | {"options": dict(options)}
    replace_file(output_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")
    for name, rows in tables(analysis).items():
        (output_dir / name).unlink(missing_ok=True)
        CsvTable(output_dir / name).append(rows)
    replace_file(output_dir / DOCUMENT, analysis_markdown(analysis))
    (output_dir / FIGURES).mkdir(exist_ok=True)
    for name, figure in analysis_figures(analysis).items():
        save_figure(figure, output_dir / FIGURES / name)


def was_stopped(output_dir: Path, sha256: str, options: Mapping[str, Any]) -> bool:
    """Whether an analysis of the same weights with the same options was begun, and its removals not drawn."""
    try:
        summary = json.loads((output_dir / SUMMARY).read_text(encoding="utf-8"))
        same = (summary["weights"]["sha256"], summary["options"]) == (sha256, dict(options))
        return same and not (output_dir / FIGURES / f"{REMOVAL_FIGURE}.svg").exists()
    except (OSError, ValueError, TypeError, KeyError):
        return False


def write_removals(analysis: Analysis, output_dir: Path) -> None:
    """Put the removals of an analysis that has been written into its document, and draw them."""
    from lit_backdoor.show.removal import removal_figure  # imports matplotlib, which takes a second

    replace_file(output_dir / DOCUMENT, analysis_markdown(analysis))
    floors = {name: analysis.probes[name].chance for name in analysis.removal}
    save_figure(removal_figure(analysis.removal, floors), output_dir / FIGURES / REMOVAL_FIGURE)


def tables(analysis: Analysis) -> dict[str, list[dict[str, Value]]]:
    """The rows of every table, by file name; those of monitors have the columns that the monitors write."""
    step, probes = analysis.step or 0, analysis.probes  # the column can't be blank; tables.md says if it is not known
    patching = {name: [row for some in of_probe.patching.values() for row in some] for name, of_probe in probes.items()}
    by_file: dict[str, Mapping[str, Sequence[Any]]] = {
        HEAD_ATTRIBUTION: {name: of_probe.attribution for name, of_probe in analysis.of_rules.items()},
        HEAD_PATCHING: patching,
        PATH_PATCHING: {name: of_probe.paths for name, of_probe in probes.items()},
        ATTENTION: {name: of_probe.attention for name, of_probe in probes.items()},
        HEAD_SPECIFICITY: {name: of_probe.specificity for name, of_probe in probes.items() if analysis.asked},
        NEURONS: {name: [of_probe.neurons.counts] for name, of_probe in probes.items() if of_probe.neurons is not None},
        PROGRESS_MEASURES: analysis.progress,
    }
    rows = {
        file: [row for name, results in by_name.items() for row in result_rows(step, name, results)]
        for file, by_name in by_file.items()
    }
    return rows | {"head_shapley.csv": head_shapley_rows(analysis)}


def summary_record(analysis: Analysis, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What summary.json holds: accuracies of the model as it is, its shape, and where its weights came from."""
    unpatched = {name: of_probe.unpatched for name, of_probe in analysis.of_rules.items()}
    sizes = {result.n_examples for result in unpatched.values()}
    return {
        "task": analysis.title,
        "step": analysis.step,
        "accuracy": {name: result.recipient_accuracy for name, result in unpatched.items()},
        "n_examples": sizes.pop() if len(sizes) == 1 else {name: each.n_examples for name, each in unpatched.items()},
        "not_measured": {name: dict(of_probe.not_measured) for name, of_probe in analysis.probes.items()},
        "model": dict(analysis.model),
        "weights": dict(origin),
    }


def analysis_figures(analysis: Analysis) -> "dict[str, Figure]":
    """Every figure, by file name."""
    from lit_backdoor.show.circuit import circuit_figure  # imports matplotlib, which takes a second
    from lit_backdoor.show.heads import (
        attention_figure,
        attention_shift_figure,
        attribution_figure,
        head_sets_figure,
        rules_figure,
        specificity_figure,
    )
    from lit_backdoor.show.neurons import neurons_figure

    rules, asked = rule_heads(analysis), analysis.asked or analysis.of_rules  # a clean model has the benign rule alone
    sets = {
        f"{analysis.label(name)}{of_probe.donor} heads into the {of_probe.recipient} run": of_probe.patching["resample"]
        for name, of_probe in analysis.probes.items()
    }
    attention = {
        f"{analysis.label(name)}{of_probe.recipient}": of_probe.attention
        for name, of_probe in analysis.of_rules.items()
    }
    drawn: dict[str, Figure] = {
        "all_sets_of_heads": head_sets_figure(sets),
        "attention_from_last_position": attention_figure(attention, analysis.positions),
    }
    if analysis.asked:
        shifts = {
            f"{analysis.label(name)}{of_probe.recipient} minus {of_probe.donor}": of_probe.attention
            for name, of_probe in asked.items()
        }
        drawn["attention_shift"] = attention_shift_figure(shifts, analysis.positions)
        drawn["specificity"] = specificity_figure({name: {0: of_probe.specificity} for name, of_probe in asked.items()})
    for name, of_probes in _attributions(analysis).items():
        if results := {f"{probe} answers": each.attribution for probe, each in of_probes.items() if each.attribution}:
            drawn[name] = attribution_figure(results)
    if len(rules) > 1:
        drawn["which_head_serves_which_rule"] = rules_figure(rules)
    for name, of_probe in asked.items():
        if any(len(result.edges) == 1 for result in of_probe.paths):
            drawn[f"circuit_{name}"] = circuit_figure(of_probe.paths, _same_tokens(analysis, of_probe))
    if neurons := {name: of_probe.neurons for name, of_probe in asked.items() if of_probe.neurons is not None}:
        drawn["neurons"] = neurons_figure(neurons)
    return drawn


def _attributions(analysis: Analysis) -> dict[str, dict[str, ProbeAnalysis]]:
    """The probes of each figure of attribution, by file name: the paper's, or of another task one."""
    if not analysis.progress:
        return {"attribution": dict(analysis.probes)}
    benign = {"figure_4_attribution_benign": {"benign": analysis.probes["benign"]}}
    return benign | {"figure_2_attribution_backdoor": analysis.of_backdoors}


def _same_tokens(analysis: Analysis, of_probe: ProbeAnalysis) -> str | None:
    """A name for the tokens that are the same in both runs of a probe; None if there are none."""
    n_positions = len({result.position for result in of_probe.attention})
    same = [position for position in range(n_positions) if position not in of_probe.positions]
    if not same:
        return None
    return ", ".join(analysis.positions[position] for position in same) if analysis.positions else "the rest"


def save_figure(figure: "Figure", path: Path) -> None:
    """Write ``path`` with .png and .svg."""
    from lit_backdoor.show.style import figure_bytes

    for kind, content in figure_bytes(figure).items():
        replace_file(path.with_suffix(f".{kind}"), content)


def head_shapley_rows(analysis: Analysis) -> list[dict[str, Value]]:
    """The rows of head_shapley.csv: a value per head, and an interaction per pair of heads."""
    rows: list[dict[str, Value]] = []
    for probe, of_probe in analysis.probes.items():
        for metric, result in of_probe.shapley.items():
            common: dict[str, Value] = {"step": analysis.step or 0, "probe": probe, "metric": metric}
            rows += [
                {**common, "kind": "value", "heads": head_name(*head), "value": value}
                for head, value in result.values.items()
            ]
            rows += [
                {**common, "kind": "interaction", "heads": head_set_name(pair), "value": value}
                for pair, value in result.interactions.items()
            ]
    return rows
