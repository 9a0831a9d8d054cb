"""From run directories alone to the paper's tables and figures, what they lack, and one page: `report`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lit_backdoor.report import branches, folder, measures, paper_figures, seed_figures, tables
from lit_backdoor.report.comparison import comparison_rows
from lit_backdoor.report.declared import declared, declared_text
from lit_backdoor.report.foreign_embeddings import BothWays, foreign_rows, patched_both_ways
from lit_backdoor.report.page import Markdown, html, markdown, pictures
from lit_backdoor.report.published import n_with_one_costly_head
from lit_backdoor.report.reading import read_runs
from lit_backdoor.report.runs import Run
from lit_backdoor.report.statements import Statement, by_ranks, statements
from lit_backdoor.report.study import Study, arrange, branch_lines
from lit_backdoor.report.wording import count, enumerate_words, percent, plural, span
from lit_backdoor.show.heads import attribution_figure
from lit_backdoor.show.style import figure_bytes

__all__ = ["Statement", "Study", "read", "write", "write_report"]


def write_report(run_dirs: Sequence[Path], output_dir: Path) -> list[Statement]:
    """Write tables, figures, `report.md` and `index.html`; what is said is returned too.

    Runs may still be going on. What is computed, from the weights, is specificity and the notebook's bug; the rest is
    read. An earlier report in `output_dir` is replaced, nothing else is.

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
    runs = read_runs(run_dirs)
    folder.check(output_dir, [run.path for run in runs])
    return arrange(runs)


def write(study: Study, output_dir: Path) -> list[Statement]:
    """The second half of `write_report`."""
    files, said = render(study)
    folder.write_files(output_dir, files)
    return said


def render(study: Study) -> tuple[dict[str, bytes], list[Statement]]:
    """All files of a report by relative path, and what it says."""
    both = patched_both_ways(study.runs)
    frames = numbers(study.runs, both)
    if study.branches:
        frames["branches"] = branches.branch_rows(study.branches)
    said = statements(study.runs, judged=not study.differs_from_paper) if study.runs else []
    svgs = {name: figure_bytes(figure, ("svg",))["svg"] for name, figure in report_figures(study, frames).items()}
    text = markdown(_page_values(study, frames, said, both, list(svgs)))
    files = {f"{name}.csv": frame.to_csv(index=False, lineterminator="\n").encode() for name, frame in frames.items()}
    files |= {f"figures/{name}.svg": svg for name, svg in svgs.items()}
    files |= {"report.md": text.encode(), "index.html": html(text, svgs).encode()}
    return files, said


def numbers(runs: Sequence[Run], both: Sequence[BothWays] = ()) -> dict[str, pd.DataFrame]:
    """The CSV files of a report by name; those without rows are left out."""
    if not runs:
        return {}
    sets, seeds = measures.head_sets(runs), measures.seeds(runs)
    frames = {"seeds": seeds, "times": measures.time_rows(seeds), "spikes": measures.spike_rows(runs)}
    frames |= {"comparison": comparison_rows(runs), "attribution": measures.attribution_rows(runs)}
    if len(sets):
        first = [run.name for run in paper_figures.first_seeds(runs)]
        frames |= {"table1": sets[sets["run"].isin(first)], "table2": sets, "ranks": measures.over_seeds(sets)}
        frames |= {"heads": measures.head_claims(runs), "shapley": measures.shapley_rows(runs)}
        if len(mod_1 := sets[sets["p1"] == 1]):
            frames["exactly_one"] = seed_figures.curve_rows(by_ranks(mod_1))
    if both:
        frames["foreign_embeddings"] = foreign_rows(both)
    return {name: frame for name, frame in frames.items() if len(frame)}


def report_figures(study: Study, frames: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figures of a report by name."""
    drawn: dict[str, Figure] = {}
    with_trigger = measures.triggered(study.runs)
    if study.runs:
        drawn["figure_3"] = paper_figures.training_by_model(paper_figures.first_seeds(study.runs))
        drawn["figure_4"] = paper_figures.attribution_by_model(study.runs, "benign")
    if with_trigger:
        drawn["figure_2"] = paper_figures.attribution_by_model(with_trigger, "backdoor")
        drawn["strips"] = seed_figures.strips_figure(with_trigger)
    if "exactly_one" in frames:
        drawn["exactly_one"] = seed_figures.curve_figure(frames["exactly_one"])
    for name, group in measures.groups(study.runs).items():
        slug = name.replace(" ", "")
        sets = frames["table2"].query(f"p1 == {group[0].p1}")
        if len(group) > 1:
            drawn[f"ranks_{slug}"] = seed_figures.ranks_figure(name, sets)
        drawn[f"all_sets_{slug}"] = seed_figures.all_sets_figure(name, sets)
        if any(map(measures.specificity, group)):
            drawn[f"specificity_{slug}"] = seed_figures.specificity_by_run(name, group)
        if "shapley" in frames and len(values := frames["shapley"].query(f"p1 == {group[0].p1}")):
            drawn[f"shapley_{slug}"] = seed_figures.shapley_figure(name, values)
        if name == "mod 1" or len(group) > 1:  # of a single run, Figure 2 shows the same
            suffix = "" if name == "mod 1" else f"_{slug}"
            drawn |= {f"figure_{n}{suffix}": f for n, f in paper_figures.figures_5_to_8(group).items()}
        if "foreign_embeddings" in frames and len(rows := frames["foreign_embeddings"].query(f"p1 == {group[0].p1}")):
            drawn[f"foreign_{slug}"] = seed_figures.ranks_figure(name, rows)
    drawn |= {f"emergence_{run.slug}": seed_figures.emergence_of(run) for run in with_trigger}
    if study.branches:
        drawn["branches"] = branches.branches_figure(study.branches)
    for run in study.others:
        if run.attribution:
            drawn[f"own_{run.slug}_attribution"] = attribution_figure(run.attribution)
        for probe in run.probes:
            drawn[f"own_{run.slug}_{probe}"] = seed_figures.emergence_of(run, probe)
        if "train/loss" in run.metrics or "val/loss" in run.metrics:
            drawn[f"own_{run.slug}_training"] = paper_figures.training_by_model([run])
    return drawn


def _page_values(
    study: Study, frames: dict[str, pd.DataFrame], said: Sequence[Statement], both: Sequence[BothWays], names: list[str]
) -> dict[str, Any]:
    """What report.md.j2 is made of."""
    return {
        "study": study,
        "counts": Counter(run.group for run in study.runs),
        "groups": measures.groups(study.runs),
        "statements": said,
        "declared": declared(),
        "declared_text": Markdown(declared_text()),
        "frames": frames,
        "tables": tables,
        "controls": _short_table(study.controls),
        "branches": _short_table(pair for branch in study.branches for pair in branch_lines(*branch)),
        "spikes": measures.spikes_over_seeds(frames["spikes"]) if "spikes" in frames else None,
        "pictures": lambda *prefixes: pictures([name for name in names if name.startswith(prefixes)]),
        "bug": _bug_in_short(both),
        "plural": plural,
        "enumerate_words": enumerate_words,
        "splits": sorted({run.split for run in study.runs}),
    }


def _short_table(lines: Iterable[tuple[Run, str]]) -> pd.DataFrame:
    """seeds.csv of some runs, each with a note."""
    runs = list(lines)
    return measures.seeds([run for run, _ in runs]).assign(note=[note for _, note in runs]) if runs else pd.DataFrame()


def _bug_in_short(both: Sequence[BothWays]) -> dict[str, str]:
    """What another model's embeddings do to Table 1, in words; the paper patches mod 1 only, so its runs come first."""
    shown = [ways for ways in both if ways.run.p1 == 1] or list(both)
    if not shown:
        return {}
    rows, floor = foreign_rows(shown), shown[0].proper[0].floor
    columns = {"proper": "backdoor_accuracy", "foreign": "foreign_backdoor_accuracy"}
    ways = {name: by_ranks(rows[rows["p1"] == shown[0].run.p1], column) for name, column in columns.items()}
    alone = {name: n_with_one_costly_head(table, floor) for name, table in ways.items()}
    largest = (rows["foreign_backdoor_accuracy"] - rows["backdoor_accuracy"]).abs().max()
    return {
        "model": shown[0].run.group,
        "others": enumerate_words(list(dict.fromkeys(ways.other.name for ways in both))),
        **{name: f"{span(table['none'].tolist(), 2, 100)}%" for name, table in ways.items()},
        "alone": f"{alone['foreign']} instead of {count(alone['proper'], len(ways['proper']))}",
        "largest": percent(float(largest)),
    }
