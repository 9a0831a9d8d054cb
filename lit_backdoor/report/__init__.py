"""From run directories alone to the paper's tables and figures, what they lack, and one page: ``report``."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from lit_backdoor.report import folder, rows
from lit_backdoor.report.finding import Finding
from lit_backdoor.report.findings import findings
from lit_backdoor.report.measures import triggered
from lit_backdoor.report.page import html, markdown
from lit_backdoor.report.paper_figures import first_seeds
from lit_backdoor.report.published import compare
from lit_backdoor.report.runs import Run, read_runs
from lit_backdoor.report.sections import lead, sections, title
from lit_backdoor.report.slip import slips
from lit_backdoor.show.style import figure_bytes

__all__ = ["Finding", "read", "write", "write_report"]


def write_report(run_dirs: Sequence[Path], output_dir: Path) -> list[Finding]:
    """Write tables, figures, ``report.md`` and ``index.html``; the verdicts are returned too.

    Runs may still be going on. Nothing is computed but the slip, which needs checkpoints; the rest is read. An earlier
    report in ``output_dir`` is replaced, nothing else is.

    Args:
        run_dirs: run directories of ``fit``, or folders that hold some at any depth.
        output_dir: new or empty, or with an earlier report in it.

    Raises:
        ValueError: in one line, if runs or folder are not as they must be; nothing has been written then.
        OSError: if the folder can't be written.
    """
    return write(read(run_dirs, output_dir), output_dir)


def read(run_dirs: Sequence[Path], output_dir: Path) -> list[Run]:
    """The runs, after making sure that they can stand in one report and that it can be written."""
    runs = read_runs(run_dirs)
    folder.check(output_dir, [run.path for run in runs])
    return runs


def write(runs: Sequence[Run], output_dir: Path) -> list[Finding]:
    """The second half of :func:`write_report`."""
    files, found = render(runs)
    folder.write(output_dir, files)
    return found


def render(runs: Sequence[Run]) -> tuple[dict[str, bytes], list[Finding]]:
    """All files of a report by relative path, and its verdicts."""
    slipped, comparisons = slips(runs), compare(runs)
    found = findings(runs, slipped, comparisons)
    chapters = sections(runs, slipped, comparisons)
    tables = {
        "table1": rows.table_rows(first_seeds(triggered(runs))),
        "table2": rows.table_rows(triggered(runs)),
        "roles": rows.role_rows(runs),
        "seeds": rows.seed_rows(runs),
        "spikes": rows.spike_rows(runs),
        "attribution": rows.attribution_rows(runs),
        "shapley": rows.shapley_rows(runs),
        "slip": rows.slip_rows(slipped),
        "comparison": rows.comparison_rows(comparisons),
    }
    files = {f"{name}.csv": csv_text(table).encode() for name, table in tables.items() if table}
    svgs = {}
    for picture in (one for chapter in chapters for one in chapter.pictures):
        for kind, content in figure_bytes(picture.figure).items():
            files[f"figures/{picture.name}.{kind}"] = content
            if kind == "svg":
                svgs[picture.name] = content
    heading, intro = title(runs), lead(runs)
    files["index.html"] = html(heading, intro, found, chapters, svgs).encode()
    files["report.md"] = markdown(heading, intro, found, chapters).encode()
    return files, found


def csv_text(table: rows.Rows) -> str:
    """A table with the columns of all its rows, in the order in which they first occur."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue()
