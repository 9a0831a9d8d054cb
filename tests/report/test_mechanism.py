"""Neurons, attention, norms and gradients over runs: rows against the functions, tables against hand-made rows."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import pytest

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import compare_attention, parse_head_set, patch_neurons
from lit_backdoor.functional.weights import weight_norms
from lit_backdoor.report.mechanism import left_out, mechanism_by_rank, mechanism_rows, neuron_rows, neurons_by_group
from lit_backdoor.runs.run import Run


def test_rows_are_what_the_functions_say(runs: Sequence[Run]) -> None:
    """The tables were written at the last step, whose weights are the model's."""
    (run, *_) = [run for run in runs if run.p1 == 1]
    assert run.model is not None and run.task is not None
    probe = task_probes(run.task)["backdoor"]
    counts = patch_neurons(run.model, probe).counts
    (row,) = neuron_rows([run]).to_dict("records")
    halves, suffices = (None if pd.isna(row[name]) else row[name] for name in ("needed", "sufficient"))
    assert (halves, suffices, row["n_neurons"]) == (counts.needed, counts.sufficient, counts.n_neurons)
    assert row["overlap"] == pytest.approx(counts.overlap, nan_ok=True) and row["step"] == run.step == 60
    norms, looks = weight_norms(run.model), {each.head: each for each in compare_attention(run.model, probe)}
    rows = mechanism_rows([run])
    assert [parse_head_set(name)[0] for name in rows["head"]] == list(run.order)
    assert rows["rank"].tolist() == [1, 2, 3, 4]
    for row, head in zip(rows.to_dict("records"), run.order, strict=True):
        assert (row["qk_norm"], row["ov_norm"]) == pytest.approx((norms.qk[head], norms.ov[head]), rel=1e-5)
        assert row["attention"] == pytest.approx(looks[head].recipient[2], abs=1e-5)  # the trigger stands last
        assert row["shift"] == pytest.approx(looks[head].recipient[2] - looks[head].donor[2], abs=1e-5)
        assert 0 <= row["gradient_share"] <= 1


def test_runs_without_tables_have_no_rows(runs: Sequence[Run]) -> None:
    (run, *_) = [run for run in runs if run.p1 == 1]
    mine = {name: table for name, table in run.tables.items() if name not in ("attention", "neurons")}
    without_both = replace(run, tables={name: table for name, table in mine.items() if name != "progress_measures"})
    assert neuron_rows([without_both]).empty and mechanism_rows([without_both]).empty
    rows = mechanism_rows([replace(run, tables=mine)])  # norms alone
    assert rows["attention"].isna().all() and rows["qk_norm"].notna().all()
    assert "| head | QK norm | OV norm | share of the gradient |" in mechanism_by_rank(rows)
    assert neuron_rows([run for run in runs if run.p1 is None]).empty


def test_a_run_without_the_backdoor_has_no_rows_and_is_said_to_be_left_out(runs: Sequence[Run]) -> None:
    (run, *_) = [run for run in runs if run.p1 == 1]
    table = run.tables["head_patching"].copy()
    table.loc[table["probe"] == "benign", "backdoor_accuracy"] = 0.9  # its answers come without the trigger too
    without = replace(run, tables={**run.tables, "head_patching": table})
    assert neuron_rows([without]).empty and mechanism_rows([without]).empty
    pd.testing.assert_frame_equal(mechanism_rows([without, run]), mechanism_rows([run]))
    clean = [run for run in runs if run.p1 is None]
    assert left_out([run, without, *clean]) == "Not counted, as they do not have the backdoor: 1 run."
    assert left_out([run, *clean]) == ""


def test_medians_and_ranges() -> None:
    table = pd.DataFrame({
        "group": ["mod 1"] * 3 + ["mod 7"], "n_neurons": 512, "needed": [4, 10, None, None], "sufficient": [7, 7, 7, 9],
        "overlap": [0.5, 0.25, math.nan, math.nan], "overlap_by_chance": [0.01, 0.02, math.nan, math.nan],
    }).astype({"needed": "Int64"})  # fmt: skip
    rows = neurons_by_group(table).splitlines()[2:]
    assert rows[0] == "| mod 1 | 3 | 512 | 7 [4 to 10], in 2 of 3 runs | 7 | 37.5% [25.0 to 50.0] | 1.5% [1.0 to 2.0] |"
    assert rows[1] == "| mod 7 | 1 | 512 | \N{EN DASH}, in 0 of 1 run | 9 | \N{EN DASH} | \N{EN DASH} |"
    heads = pd.DataFrame({
        "rank": [1, 1, 2], "attention": [0.9, 0.7, 0.25], "shift": [0.5, -0.25, 0.0],
        "qk_norm": math.nan, "ov_norm": math.nan, "gradient_share": math.nan,
    })  # fmt: skip
    assert mechanism_by_rank(heads).splitlines()[2:] == [
        "| rank 1 | 80.0% [70.0 to 90.0] | 12.5 [-25.0 to 50.0] |", "| rank 2 | 25.0% | 0.0 |",
    ]  # fmt: skip
