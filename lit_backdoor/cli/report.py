"""``report``: runs side by side, beside the paper."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lit_backdoor.cli.parser import OneLineParser, checking_options, given_path
from lit_backdoor.runs.directory import as_typed

HELP = "Report on finished or running runs: the paper's tables and figures, heads by rank, verdicts, one HTML page."


def parser() -> ArgumentParser:
    """The options of ``report``."""
    options = OneLineParser(description=HELP, prog="lit-backdoor report")
    options.add_argument(
        "run_dirs",
        type=str,
        nargs="+",
        help="Run directories of fit and folders of analyze --removal, or folders that hold some at any depth.",
    )
    options.add_argument(
        "--output_dir", type=str, required=True, help="New or empty folder, or one with an earlier report to replace."
    )
    return options


def run(options: Namespace) -> int:
    """Write the report and print its verdicts."""
    with checking_options():
        run_dirs = [given_path("run_dirs", path) for path in options.run_dirs]
        output_dir = given_path("output_dir", options.output_dir)
    report_on(run_dirs, output_dir)
    return 0


def report_on(run_dirs: Sequence[Path], output_dir: Path) -> None:
    """The same for given runs.

    Raises:
        OptionError: in one line; nothing has been written then.
        OSError: if the disk is full; an earlier report is still there then.
    """
    from lit_backdoor.report import read, write

    with checking_options():
        study = read(run_dirs, output_dir)
    for path in study.just_started:
        print(f"left out, has just started: {as_typed(path)}", file=sys.stderr)
    for said in write(study, output_dir):
        print(f"{said.title} ({said.verdict or 'no verdict'}): {said.headline}")
    print(f"report: {os.path.relpath(output_dir / 'index.html')}")
