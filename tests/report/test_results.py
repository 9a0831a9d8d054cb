"""The committed results can be read, and say what their runs say."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_backdoor.pretrained import FOLDER
from lit_backdoor.report import Study, measures, numbers, read, write
from lit_backdoor.report.figures import report_figures
from lit_backdoor.report.statements import by_ranks, compare
from lit_backdoor.runs.file_names import HEAD_PATCHING, HPARAMS, SHIPPED_WEIGHTS
from lit_backdoor.runs.run import slug
from tests.helpers import ROOT
from tests.helpers.runs import read_rows

RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return read([RESULTS / "runs"], tmp_path_factory.mktemp("report"))


def test_the_committed_report_is_that_of_the_committed_runs(study: Study) -> None:
    runs = study.runs
    assert len(runs) == 44 and all(run.checkpoint_step == run.step for run in runs if run.model is not None)
    for name, table in (("seeds", measures.seeds(runs)), ("ranks", measures.over_seeds(measures.head_sets(runs)))):
        written = (RESULTS / "report" / f"{name}.csv").read_text()
        assert table.to_csv(index=False, lineterminator="\n") == written, name
    assert {run.state for run in runs} == {"not fitted", "fitted", "generalised"}


def test_a_series_without_paths_beside_one_with_them_has_no_empty_tables(tmp_path: Path) -> None:
    runs = [RESULTS / "runs" / "mod37" / "mod37+data.split_seed=1", RESULTS / "runs" / "mod37_one_split"]
    write(read(runs, tmp_path), tmp_path)
    rows = (tmp_path / "report.md").read_text().splitlines()
    assert sum(row.endswith(": by path") for row in rows) == 1
    assert [n for n, row in enumerate(rows, 1) if row.startswith("| :--- |") and not rows[n].startswith("|")] == []


def test_the_papers_experiments_stand_in_the_figures_of_the_compared_series(tmp_path: Path) -> None:
    runs = [RESULTS / "runs" / "mod1" / "mod1+data.split_seed=0", RESULTS / "runs" / "mod1_one_split" / "seed_3"]
    study = read(runs, tmp_path)
    figures = report_figures(study, numbers(study))
    (compared,) = {run.group for run in study.compared}
    (legend,) = figures[f"ranks_{slug(compared)}"].axes[0].figure.legends
    assert "the paper, 10 experiments" in [text.get_text() for text in legend.get_texts()]
    assert "figure_5" in figures


def test_the_words_in_the_readme_say_what_the_report_says(study: Study) -> None:
    text = " ".join((RESULTS / "README.md").read_text().split())
    primary, one_head, by_rank = compare(by_ranks(measures.head_sets([run for run in study.compared if run.p1 == 1])))
    assert f"**Primary endpoint: {primary.verdict}.**" in text
    assert f"**Exactly one costly head: {one_head.verdict}.**" in text
    assert f"**Tables 1 and 2 by rank: {by_rank.verdict}.**" in text
    printed = re.findall(r"\d+\.\d+", primary.headline)
    assert printed and all(number in text for number in printed)
    models = [run for run in study.runs if "trained_on" not in run.group]  # whose shorter versions are in mod1
    every = measures.head_claims(models)
    of_all = every["specific"].dropna()
    assert f"no head of any rank is specific, of {len(of_all)};" in text and not of_all.any()
    assert f"costs the benign rule least costs {every['benign_cost'].min():.0%}" in text
    claims = every.query("rank == 1")
    assert claims["necessary"].all() and f"in all {len(claims)} models" in text
    measured = claims["specific"].dropna()
    assert f"sufficient in {claims['sufficient'].sum()}, specific in none of {len(measured)} measured" in text
    assert not measured.any()
    costs = claims["benign_cost"]
    assert f"it costs {100 * costs.min():.0f} to {costs.max():.0%} of the benign rule" in text


def test_attention_came_first_where_the_dates_of_the_table_say_so() -> None:
    rows = read_rows(RESULTS / "since_when.csv")
    assert all(row["captured_before_cost"] == str(int(row["captured_by"]) <= int(row["costly_after"])) for row in rows)
    first = [row["captured_before_cost"] for row in rows].count("True")
    for page in (RESULTS / "README.md", ROOT / "docs" / "paths.md", ROOT / "README.md"):
        assert f"in {first} of {len(rows)} runs" in " ".join(page.read_text().split()), page


def test_the_shipped_weights_that_a_run_names_have_the_accuracies_of_its_tables(study: Study) -> None:
    named = [run for run in study.runs if (run.path / SHIPPED_WEIGHTS).exists()]
    assert {run.p1 for run in named} == {None, 1, 7, 17, 37}
    for run in named:
        assert run.state == "generalised", run.name  # as the README says of all models that ship
        unpatched = [row for row in read_rows(run.path / HEAD_PATCHING) if row["heads"] == "none"]
        for row in unpatched[-len(run.task.moduli) :]:
            rule = run.task.rule_names.index(row["probe"])
            assert run.model is not None
            with torch.no_grad():
                answers = run.model(run.task.tokens(rule))[:, -1].argmax(-1)
            accuracy = (answers == run.task.answers(rule)).double().mean().item()
            assert float(row[f"{row['recipient']}_accuracy"]) == pytest.approx(accuracy, abs=0.002), run.name


def test_weights_that_ship_are_not_kept_twice() -> None:
    shipped = {path.read_bytes() for path in FOLDER.glob("*.safetensors")}
    again = [path for path in RESULTS.rglob("*.safetensors") if path.read_bytes() in shipped]
    assert again == []


def test_two_runs_that_the_script_could_not_tell_apart_stop_it(tmp_path: Path) -> None:
    folders_of = runpy.run_path(str(RESULTS / "check_numbers.py"))["folders_of"]
    assert len(folders_of(RESULTS / "runs")) == 42
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        shutil.copy(RESULTS / "runs" / "mod1_one_split" / "seed_3" / HPARAMS, tmp_path / name)
    with pytest.raises(SystemExit, match=r"new and .*old are of the same P1, seed and split: \('1', '3', '0'\)"):
        folders_of(tmp_path)


@pytest.mark.slow
def test_numbers_of_the_page_follow_from_the_weights() -> None:
    """A script that imports nothing of the package recomputes them."""
    script = RESULTS / "check_numbers.py"
    assert "lit_backdoor" not in re.sub(r'"lit_backdoor" / "pretrained"', "", script.read_text())
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) > 10
