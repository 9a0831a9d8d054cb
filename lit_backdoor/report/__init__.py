"""From run directories alone to the paper's tables and figures, what they lack, and one page: `report`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lit_backdoor.report import folder, measures, paper_figures, seed_figures, tables
from lit_backdoor.report.branches import branch_rows, branches_figure
from lit_backdoor.report.comparison import comparison_rows
from lit_backdoor.report.crossed import crossed_groups, fitted_figure, fitted_rows, variance_rows
from lit_backdoor.report.declared import declared, declared_text
from lit_backdoor.report.foreign_embeddings import foreign_rows
from lit_backdoor.report.other_tasks import own_figures
from lit_backdoor.report.page import Markdown, html, markdown, pictures
from lit_backdoor.report.paths import path_rows, paths_by_rank, paths_figure
from lit_backdoor.report.published import n_with_one_costly_head
from lit_backdoor.report.reading import read_runs
from lit_backdoor.report.runs import Run, last_folders, slug
from lit_backdoor.report.statements import by_ranks, statements
from lit_backdoor.report.study import Study, arrange, branch_lines
from lit_backdoor.report.wording import Statement, count, enumerate_words, heading, percent, plural, span
from lit_backdoor.show.style import figure_bytes
from lit_backdoor.show.training import progress_figure, training_figure

__all__ = ["Statement", "Study", "read", "write", "write_report"]

MOST_RUNS = 10
"""So many runs of a group have a figure each, as the paper's ten experiments do."""


def write_report(run_dirs: Sequence[Path], output_dir: Path) -> list[Statement]:
    """Write tables, figures, `report.md` and `index.html`; what is said is returned too.

    Runs may still be going on. What is computed, from the weights, is the notebook's bug, and specificity and paths
    where a run has no table of them; the rest is read. An earlier report in `output_dir` is replaced, nothing else is.

    Args:
        run_dirs: run directories, or folders that hold some at any depth.
        output_dir: new or empty, or with an earlier report in it.

    Raises:
        ValueError: in one line, if runs or folder are not as they must be; nothing has been written then.
        OSError: if the folder can't be written.
    """
    return write(read(run_dirs, output_dir), output_dir)


def read(run_dirs: Sequence[Path], output_dir: Path) -> Study:
    """The runs, after making sure that they can stand in one report and that it can be written."""
    just_started: list[Path] = []
    runs = read_runs(run_dirs, just_started.append)
    folder.check(output_dir, [*(run.path for run in runs), *just_started])
    return replace(arrange(runs), just_started=just_started)


def write(study: Study, output_dir: Path) -> list[Statement]:
    """The second half of `write_report`."""
    files, said = render(study)
    folder.write_files(output_dir, files)
    return said


def render(study: Study) -> tuple[dict[str, bytes], list[Statement]]:
    """All files of a report by relative path, and what it says."""
    frames = numbers(study) | by_name(foreign_embeddings=foreign_rows(study.compared))
    frames |= by_name(branches=branch_rows(study.branches))
    said = statements(study, frames) if study.runs else []
    svgs = {name: figure_bytes(figure, ("svg",))["svg"] for name, figure in report_figures(study, frames).items()}
    text = markdown(_page_values(study, frames, said, list(svgs)))
    files = {f"{name}.csv": frame.to_csv(index=False, lineterminator="\n").encode() for name, frame in frames.items()}
    files |= {f"figures/{name}.svg": svg for name, svg in svgs.items()}
    files |= {"report.md": text.encode(), "index.html": html(text, svgs).encode()}
    return files, said


def numbers(study: Study) -> dict[str, pd.DataFrame]:
    """The CSV files of a report by name, but for that of the notebook's bug; those without rows are left out."""
    runs = study.runs
    if not runs:
        return {}
    sets, seeds = measures.head_sets(runs), measures.seeds(runs)
    frames = by_name(
        seeds=seeds,
        times=measures.time_rows(seeds),
        spikes=measures.spike_rows(runs),
        comparison=comparison_rows(study.compared),
        attribution=measures.attribution_rows(runs),
        fitted=fitted_rows(seeds),
        fitted_by_source=variance_rows(seeds),
        paths=path_rows(runs),
    )
    if len(sets):
        first = [run.name for run in paper_figures.first_seeds(runs)]
        frames |= by_name(table1=sets[sets["run"].isin(first)], table2=sets, ranks=measures.over_seeds(sets))
        frames |= by_name(heads=measures.head_claims(runs), shapley=measures.shapley_rows(runs))
        mod_1 = sets["run"].isin([run.name for run in study.compared if run.p1 == 1])
        if mod_1.any():
            frames["exactly_one"] = seed_figures.curve_rows(by_ranks(sets[mod_1]))
    return frames


def by_name(**frames: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The frames that have rows."""
    return {name: frame for name, frame in frames.items() if len(frame)}


def report_figures(study: Study, frames: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figures of a report by name."""
    drawn: dict[str, Figure] = {}
    with_trigger = measures.triggered(study.runs)
    attributed = [run for run in study.compared if run.attribution]
    if study.runs:
        first = paper_figures.first_seeds(study.compared)
        drawn["figure_3"] = training_figure({run.name: run.metrics for run in first})
    for number, probe in (("2", "backdoor"), ("4", "benign")):
        if some := [run for run in attributed if probe in run.attribution]:
            drawn[f"figure_{number}"] = paper_figures.attribution_by_model(some, probe)
    if with_trigger:
        drawn["strips"] = seed_figures.strips_figure(with_trigger)
    if "exactly_one" in frames:
        drawn["exactly_one"] = seed_figures.curve_figure(frames["exactly_one"])
    drawn |= {
        f"fitted_{slug(name)}": fitted_figure(name, runs)
        for name, runs in crossed_groups(frames.get("seeds", pd.DataFrame()))
    }
    for name, group in measures.groups(study.runs).items():
        of_group = {table: frame[frame["group"] == name] for table, frame in frames.items() if "group" in frame}
        figures = {"all_sets": seed_figures.all_sets_figure(name, of_group["table2"])}
        if len(group) > 1:
            figures["ranks"] = seed_figures.ranks_figure(name, of_group["table2"])
        if any(run.specificity for run in group):
            figures["specificity"] = seed_figures.specificity_by_run(name, group)
        for kind, table, draw in (
            ("shapley", "shapley", seed_figures.shapley_figure),
            ("paths", "paths", paths_figure),
            ("foreign", "foreign_embeddings", seed_figures.ranks_figure),
        ):
            if len(rows := of_group.get(table, pd.DataFrame())):
                figures[kind] = draw(name, rows)
        drawn |= {f"{kind}_{slug(name)}": figure for kind, figure in figures.items()}
        own = [run for run in attributed if run in group]
        if name == "mod 1" or len(own) > 1:  # of a single run, Figure 2 shows the same
            suffix = "" if name == "mod 1" else f"_{slug(name)}"
            drawn |= {f"figure_{n}{suffix}": f for n, f in paper_figures.figures_5_to_8(own).items()}
        drawn |= {f"emergence_{run.slug}": seed_figures.emergence_of(run) for run in group[:MOST_RUNS]}
        drawn |= {f"progress_{run.slug}": progress_figure(run.progress) for run in group[:1] if run.progress}
    if study.branches:
        drawn["branches"] = branches_figure(study.branches)
    for run in study.others:
        drawn |= own_figures(run)
    return drawn


def _page_values(
    study: Study, frames: Mapping[str, pd.DataFrame], said: Sequence[Statement], names: Sequence[str]
) -> dict[str, Any]:
    """What report.md.j2 is made of."""
    return {
        "study": study,
        "just_started": [last_folders(path) for path in study.just_started],
        "counts": Counter(run.group for run in study.runs),
        "groups": measures.groups(study.runs),
        "statements": said,
        "declared": declared(),
        "declared_text": Markdown(declared_text()),
        "frames": frames,
        "tables": tables,
        "paths_by_rank": paths_by_rank,
        "controls": _short_table(study.controls),
        "branches": _short_table(pair for branch in study.branches for pair in branch_lines(branch)),
        "spikes": measures.spikes_over_seeds(frames["spikes"]) if "spikes" in frames else None,
        "pictures": lambda *prefixes: pictures([name for name in names if name.startswith(prefixes)]),
        "bug": _bug_in_short(frames["foreign_embeddings"]) if "foreign_embeddings" in frames else None,
        "most_runs": MOST_RUNS,
        "heading": heading,
        "plural": plural,
        "enumerate_words": enumerate_words,
        "splits": sorted({run.split for run in study.runs}),
    }


def _short_table(lines: Iterable[tuple[Run, str]]) -> pd.DataFrame:
    """seeds.csv of some runs, each with a note."""
    runs = list(lines)
    return measures.seeds([run for run, _ in runs]).assign(note=[note for _, note in runs]) if runs else pd.DataFrame()


def _bug_in_short(foreign: pd.DataFrame) -> dict[str, str]:
    """What another model's embeddings do to Table 1, in words; the paper patches mod 1 only, so its runs come first."""
    shown = foreign[foreign["p1"] == 1] if (foreign["p1"] == 1).any() else foreign
    rows = shown[shown["group"] == shown["group"].iloc[0]]
    columns = {"proper": "backdoor_accuracy", "foreign": "foreign_backdoor_accuracy"}
    ways = {name: by_ranks(rows, column) for name, column in columns.items()}
    alone = {name: n_with_one_costly_head(table, rows["floor"].iloc[0]) for name, table in ways.items()}
    largest = (rows["foreign_backdoor_accuracy"] - rows["backdoor_accuracy"]).abs().max()
    return {
        "model": rows["group"].iloc[0],
        "others": enumerate_words(rows["other_run"].unique().tolist()),
        **{name: f"{span(table['none'].tolist(), 2, 100)}%" for name, table in ways.items()},
        "alone": f"{alone['foreign']} instead of {count(alone['proper'], len(ways['proper']))}",
        "largest": percent(float(largest)),
    }
