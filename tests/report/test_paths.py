"""Paths over runs: the rows against path patching itself, and the words against hand-made numbers."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import cost_above_floor, parse_edge_set, patch_paths
from lit_backdoor.report.paths import capture_statement, path_rows, paths_statement
from lit_backdoor.runs.run import Run


def test_rows_are_what_path_patching_says(runs: Sequence[Run]) -> None:
    (run, *_) = [run for run in runs if run.p1 == 1]
    assert "path_patching" in run.tables and run.model is not None
    by_weights = replace(run, tables={name: table for name, table in run.tables.items() if name != "path_patching"})
    rows, again = path_rows([run]), path_rows([by_weights])
    pd.testing.assert_frame_equal(rows, again, check_exact=False, rtol=1e-6)
    assert len(rows) == 7 + 4 * 6
    probe = task_probes(run.task)["backdoor"]  # type: ignore[arg-type]
    head = f"L0H{run.order[1].head}"
    every = "+".join(f"trigger>L0H{number}.Q" for number in range(4))
    for edges, group, rank in (
        (f"trigger>{head}.K", "K", 2), (f"trigger>{head}.Q+trigger>{head}.K", "QK", 2), (f"{head}>mlp", "A_mlp", 2),
        (every, "Q", "all"), ("trigger>mlp+trigger>logits", "D", "all"),
    ):  # fmt: skip
        needs, brings = (
            patch_paths(run.model, some, [(), parse_edge_set(edges)]) for some in (probe, probe.reversed())
        )
        (row,) = rows[(rows["edges"] == group) & (rows["rank"] == rank)].to_dict("records")
        assert (row["left"], row["brought"]) == (needs[1].recipient_accuracy, brings[1].donor_accuracy), edges
        whole, floor = needs[0].recipient_accuracy, needs[0].floor
        assert row["cost"] == pytest.approx(cost_above_floor(whole, row["left"], floor))


def path_table(costs: Sequence[dict[str, float]]) -> pd.DataFrame:
    """paths.csv of runs in which all heads' edges cost so much."""
    return pd.DataFrame(
        {"run": f"seed {seed}", "edges": edges, "rank": "all",
         "left": 1 - cost, "brought": 0.0, "cost": cost, "brings": 0.0}
        for seed, of_run in enumerate(costs)
        for edges, cost in of_run.items()
    )  # fmt: skip


def test_the_query_carries_the_path_from_the_declared_cost_on() -> None:
    low = {"K": 0.0, "V": 0.1, "D": 0.0, "A_mlp": 0.9}
    said = paths_statement("mod 1", path_table([low | {"Q": 0.5}, low | {"Q": 0.9, "V": 0.8}, low | {"Q": 0.49}]))
    assert said.headline == "The query carries the path in 2 of 3 runs, alone in 1." and said.verdict is None
    assert "Q in 1" in said.text and "Q+V in 1" in said.text and "none in 1" in said.text and "50%" in said.text
    in_front = paths_statement("mod 1", path_table([{"K": 0.9, "V": 0.0, "D": 0.0}]))  # a trigger in front: no query
    assert in_front.headline.startswith("The query carries the path in 0 of 1")


def test_a_run_without_the_backdoor_counts_neither_way() -> None:
    there, gone = {"Q": 0.9, "K": 0.0}, {"Q": math.nan, "K": math.nan}
    said = paths_statement("mod 1", path_table([there, gone, gone]).fillna({"left": 0.3}))
    assert said.headline == "The query carries the path in 1 of 1 run, alone in 1."
    assert "none in" not in said.text and "Not counted, as they do not have the backdoor: 2 runs." in said.text
    assert "query 10.0%," in said.text  # what is left of no backdoor is not in the span
    assert "Not counted" not in paths_statement("mod 1", path_table([there])).text
    assert paths_statement("mod 1", path_table([gone])).headline == "No run has the backdoor, so nothing carries it."


def test_attention_before_cost() -> None:
    steps = {"capture_step": [100, 200, 300, 192, None], "capture_lag": [50, -20, None, 208, None]}
    table = pd.DataFrame(steps).astype("Int64").assign(captured_before_cost=[True, False, None, None, None])
    said = capture_statement("mod 1", table)
    assert said.headline == (
        "Attention was captured before some head was costly in 1, and after it in 1 of 3 runs with both dates. "
        "Of 1 it can't be said: one date lies in the interval of the other."
    )
    assert "Captured in 4 of 5 runs; where the order is known, the first cost came -20 to 50 steps after" in said.text
    unknown = capture_statement("mod 1", table.tail(2))
    assert "Captured in 1 of 2 runs. Captured:" in unknown.text  # 208 is made by the distance of two probes


def test_without_tables_or_weights_there_is_nothing_to_say(runs: Sequence[Run], made: Path) -> None:
    tables = {name: table for name, table in runs[-1].tables.items() if name != "path_patching"}
    assert path_rows([replace(runs[-1], model=None, tables=tables)]).empty
