"""From run directories alone to the paper's tables and figures, what they lack, and one page: `report`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from lit_backdoor.pretrained import open_shipped
from lit_backdoor.report import folder, measures, mechanism, tables, times
from lit_backdoor.report.branches import branch_rows, measured_clamped, mixes_with_parent
from lit_backdoor.report.comparison import comparison_rows, curve_rows
from lit_backdoor.report.crossed import fitted_rows, variance_rows
from lit_backdoor.report.declared import declared, declared_text, judged_as_declared
from lit_backdoor.report.figures import MOST_RUNS, own_prefix, report_figures
from lit_backdoor.report.foreign_embeddings import foreign_rows
from lit_backdoor.report.page import Markdown, html, markdown, pictures
from lit_backdoor.report.paths import path_rows, paths_by_rank
from lit_backdoor.report.published import N_HEADS, n_with_one_costly_head
from lit_backdoor.report.removal import localisation_rows
from lit_backdoor.report.statements import by_ranks, statements
from lit_backdoor.report.study import Study, arrange, branch_lines
from lit_backdoor.runs.reading import read_runs
from lit_backdoor.runs.removed import read_removed
from lit_backdoor.runs.run import Run, last_folders, slug
from lit_backdoor.show.style import figure_bytes
from lit_backdoor.show.wording import Statement, count, enumerate_words, heading, not_counted, percent, plural, span

__all__ = ["Statement", "Study", "read", "write"]


def read(run_dirs: Sequence[Path], output_dir: Path) -> Study:
    """Read the runs, which may still be going on, and make sure that they can stand in one report.

    Args:
        run_dirs: run directories and folders of `analyze --removal`, or folders that hold some at any depth.
        output_dir: where the report is to be written: new or empty, or with an earlier report in it.

    Raises:
        ValueError: in one line, if runs or folder are not as they must be.
    """
    just_started: list[Path] = []
    runs = read_runs(run_dirs, open_shipped, just_started.append)
    removed = read_removed(run_dirs, runs)
    folder.check(output_dir, [*(run.path for run in runs), *(model.path for model in removed), *just_started])
    return replace(arrange([*map(judged_as_declared, runs)]), removed=removed, just_started=just_started)


def write(study: Study, output_dir: Path) -> list[Statement]:
    """Write tables, figures, `report.md` and `index.html`; what is said is returned too.

    What is computed, from the weights, is the notebook's bug, and specificity and paths where a run has no table of
    them; the rest is read. An earlier report in `output_dir` is replaced, nothing else is.

    Raises:
        OSError: if the folder can't be written.
    """
    frames = numbers(study) | by_name(foreign_embeddings=foreign_rows(study.compared))
    frames |= by_name(branches=branch_rows(study.branches), localisation=localisation_rows(study.removed))
    said = statements(study, frames) if study.runs else []
    svgs = {name: figure_bytes(figure, ("svg",))["svg"] for name, figure in report_figures(study, frames).items()}
    text = markdown(_page_values(study, frames, said, list(svgs)))
    files = {f"{name}.csv": frame.to_csv(index=False, lineterminator="\n").encode() for name, frame in frames.items()}
    files |= {f"figures/{name}.svg": svg for name, svg in svgs.items()}
    files |= {"report.md": text.encode(), "index.html": html(text, svgs).encode()}
    folder.write_files(output_dir, files)
    return said


def numbers(study: Study) -> dict[str, pd.DataFrame]:
    """The CSV files of a report by name, but for that of the notebook's bug; those without rows are left out."""
    runs = study.runs
    if not runs:
        return {}
    sets, seeds = measures.head_sets(runs), measures.seeds(runs)
    frames = by_name(
        seeds=seeds,
        times=times.time_rows(seeds),
        spikes=times.spike_rows(runs),
        comparison=comparison_rows(study.compared),
        attribution=measures.attribution_rows(runs),
        fitted=fitted_rows(seeds),
        fitted_by_source=variance_rows(seeds),
        paths=path_rows(runs),
        neurons=mechanism.neuron_rows(runs),
        mechanism=mechanism.mechanism_rows(runs),
    )
    if len(sets):
        first = [run.name for run in measures.first_seeds(runs)]
        frames |= {"table1": sets[sets["run"].isin(first)], "table2": sets}
        frames |= by_name(ranks=measures.over_seeds(sets))
        frames |= by_name(heads=measures.head_claims(runs), shapley=measures.shapley_rows(runs))
        alike = [run.name for run in study.compared if run.p1 == 1 and len(run.order) == N_HEADS]
        mod_1 = measures.counted(sets[sets["run"].isin(alike)])
        if len(mod_1):
            frames["exactly_one"] = curve_rows(by_ranks(mod_1))
    return frames


def by_name(**frames: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The frames that have rows."""
    return {name: frame for name, frame in frames.items() if len(frame)}


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
        "counted": measures.counted,
        "paths_by_rank": paths_by_rank,
        "mechanism": mechanism,
        "controls": _short_table(study.controls),
        "branches": _short_table(pair for branch in study.branches for pair in branch_lines(branch)),
        "spikes": times.spikes_over_seeds(frames["spikes"]) if "spikes" in frames else None,
        "pictures": lambda *prefixes: pictures([name for name in names if name.startswith(prefixes)]),
        "own_prefix": own_prefix,
        "bug": _bug_in_short(frames["foreign_embeddings"]) if "foreign_embeddings" in frames else None,
        "most_runs": MOST_RUNS,
        "heading": heading,
        "not_counted": not_counted,
        "plural": plural,
        "slug": slug,
        "enumerate_words": enumerate_words,
        "splits": sorted({run.split for run in study.runs}),
    }


def _short_table(lines: Iterable[tuple[Run, str]]) -> pd.DataFrame:
    """seeds.csv of some runs, each with a note; no verdict that is of clamped and unclamped probes together."""
    runs = list(lines)
    if not runs:
        return pd.DataFrame()
    notes = [f"{note}; measured clamped" if measured_clamped(run) else note for run, note in runs]
    frame = measures.seeds([run for run, _ in runs]).assign(note=notes)
    frame.loc[[mixes_with_parent(run) for run, _ in runs], ["word", "head"]] = None
    return frame


def _bug_in_short(foreign: pd.DataFrame) -> dict[str, str]:
    """What another model's embeddings do to Table 1, in words; the paper patches mod 1 only, so its runs come first."""
    shown = foreign[foreign["p1"] == 1] if (foreign["p1"] == 1).any() else foreign
    rows = shown[shown["group"] == shown["group"].iloc[0]]
    columns = {"proper": "backdoor_accuracy", "foreign": "foreign_backdoor_accuracy"}
    ways = {name: by_ranks(rows, column) for name, column in columns.items()}
    alone = {name: n_with_one_costly_head(table, declared().threshold) for name, table in ways.items()}
    largest = (rows["foreign_backdoor_accuracy"] - rows["backdoor_accuracy"]).abs().max()
    return {
        "model": rows["group"].iloc[0],
        "others": enumerate_words(rows["other_run"].unique().tolist()),
        **{name: f"{span(table['none'].tolist(), 2, 100)}%" for name, table in ways.items()},
        "alone": f"{alone['foreign']} instead of {count(alone['proper'], len(ways['proper']))}",
        "largest": percent(float(largest)),
    }
