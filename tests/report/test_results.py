"""The committed results can be read, and say what their runs say."""

from lit_backdoor.report import csv_text, rows
from lit_backdoor.report.runs import read_runs
from tests.helpers import ROOT

RESULTS = ROOT / "results"


def test_the_committed_report_is_that_of_the_committed_runs() -> None:
    runs = read_runs([RESULTS / "runs"])
    assert len(runs) == 14 and all(run.model is not None and run.checkpoint_step == run.step for run in runs)
    for name, table in (("seeds", rows.seed_rows(runs)), ("roles", rows.role_rows(runs))):
        assert csv_text(table) == (RESULTS / "report" / f"{name}.csv").read_text(), name
