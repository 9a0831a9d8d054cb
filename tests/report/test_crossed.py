"""Seeds crossed with splits: how many fitted by when, and what that goes with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from lit_backdoor.functional.seed_statistics import wilson
from lit_backdoor.report.crossed import (
    crossed_groups,
    crossed_statement,
    fitted_rows,
    variance_rows,
)  # fmt: skip
from lit_backdoor.show.over_seeds import fitted_figure
from tests.helpers.runs import Cli, read_rows


def seeds_table(grid: np.ndarray, step: int = 600) -> pd.DataFrame:
    """seeds.csv of runs that are fitted at step 300 where `grid`, [seed, split], is above 0."""
    rows = [
        {"group": "mod 1", "seed": seed, "split": split, "state": "fitted" if grid[seed, split] else "not fitted",
         "fitted_step": 300 if grid[seed, split] else None, "step": step, "steps_asked_for": step}
        for seed, split in np.ndindex(grid.shape)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"fitted_step": "Int64", "step": "Int64", "steps_asked_for": "Int64"})


def test_a_planted_seed_matters_and_chance_does_not() -> None:
    planted = np.zeros((8, 5))
    planted[:4] = 1
    rows = variance_rows(seeds_table(planted)).set_index("source")
    assert rows["share"].tolist() == pytest.approx([1, 0, 0]) and rows.loc["seed", "p_value"] < 0.001
    assert rows["by_chance"].sum() == pytest.approx(1) and rows.loc["split", "p_value"] == 1
    assert "the seed matters" in crossed_statement("mod 1", seeds_table(planted)).headline
    assert "the split matters" in crossed_statement("mod 1", seeds_table(planted.T)).headline
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(60):
        said = crossed_statement("mod 1", seeds_table(rng.integers(0, 2, (6, 4)))).headline
        wrong += "matters is inconclusive" not in said
    print(f"seed or split matters in {wrong} of 60 tables without anything")
    assert wrong <= 8
    alike = crossed_statement("mod 1", seeds_table(np.ones((3, 3))))
    assert "9 of 9 runs are fitted" in alike.headline and "inconclusive" in alike.headline


def test_how_many_had_fitted_by_when() -> None:
    grid = np.array([[1, 0], [1, 1], [0, 0]])
    table = seeds_table(grid)
    table.loc[0, "fitted_step"] = 500
    table.loc[1, ["fitted_step", "state"]] = [350, "not fitted"]  # was fitted, and lost it
    (axis, _) = fitted_figure(*next(crossed_groups(table))).axes
    assert sorted(text.get_text() for text in axis.texts) == ["300", "300", "500"] and len(axis.lines) == 3
    assert len(fitted_figure(*next(crossed_groups(seeds_table(np.zeros((2, 2)))))).axes[0].lines) == 4  # crosses alone
    rows = fitted_rows(table).set_index("by")
    assert rows["fitted"].to_dict() == {400: 3, 600: 4, "end": 3} and set(rows["n_runs"]) == {6}
    assert rows.loc[600, "wilson95_low"] == wilson(4, 6).low
    short = fitted_rows(seeds_table(grid, step=450)).set_index("by")
    assert short["n_runs"].to_dict() == {400: 6, "end": 6}  # what would have been at step 600 is not known of any
    table.loc[[1, 5], ["step", "steps_asked_for"]] = 450  # one that fitted, and one that did not
    mixed = fitted_rows(table).set_index("by")
    assert mixed["n_runs"].to_dict() == {400: 6, 600: 4, "end": 6} and mixed.loc[600, "fitted"] == 3


def test_only_whole_grids_of_finished_runs_are_crossed() -> None:
    table = seeds_table(np.ones((3, 3)))
    table.loc[8, "steps_asked_for"] = 10_000  # still going on: its split is left out
    assert set(variance_rows(table)["n_splits"]) == {2}
    assert fitted_rows(table)["n_runs"].tolist() == [8, 8, 8]
    assert not list(crossed_groups(seeds_table(np.ones((3, 1))))) and not list(crossed_groups(table.iloc[:0]))


def test_the_report_of_a_census(cli: Cli, runs_dir: Path) -> None:
    """Four runs as a sweep over seeds and splits leaves them, without attribution: rows, figure and statement."""
    original = runs_dir / "mod1" / "seed_0"
    shutil.rmtree(original / "checkpoints")
    (original / "head_attribution.csv").unlink()
    for seed, split in ((0, 0), (1, 0), (0, 1), (1, 1)):
        run = Path(shutil.copytree(original, runs_dir / "census" / f"census+data.split_seed={split}" / f"seed_{seed}"))
        options = yaml.safe_load((run / "hparams.yaml").read_text())
        (run / "hparams.yaml").write_text(yaml.safe_dump(options | {"seed_everything": seed, "split_seed": split}))
        state = {"state": "fitted" if split else "not fitted", "fitted_step": 30 if split else None}
        verdict = json.loads((run / "emergence.json").read_text())
        (run / "emergence.json").write_text(json.dumps(verdict | state))
    assert cli("report", runs_dir / "census", "--output_dir", "out") == 0
    text = Path("out/report.md").read_text()
    assert "2 of 4 runs are fitted at the end" in text and "(figures/fitted_mod1.svg)" in text
    assert [row["share"] for row in read_rows(Path("out/fitted_by_source.csv"))] == ["0.0", "1.0", "0.0"]
    assert {row["group"] for row in read_rows(Path("out/seeds.csv"))} == {"mod 1"}
    assert not Path("out/figures/figure_2.svg").exists() and "Figures 2 and 4" not in text
