"""The report's arithmetic: known answers, identities and independent oracles."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import isnan
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import Head, HeadAttribution, PatchingResult, parse_head_set
from lit_backdoor.report import rows
from lit_backdoor.report.findings import findings
from lit_backdoor.report.head_findings import emergence, patching, single_head
from lit_backdoor.report.measures import carriers, largest_share, spread
from lit_backdoor.report.published import compare, paper_by_role, published, published_order, published_table
from lit_backdoor.report.roles import by_role, head_order
from lit_backdoor.report.runs import Run, read_runs
from lit_backdoor.report.slip import other_run, patch_both_ways, slips
from lit_backdoor.runs.schema import read_results, result_rows
from lit_backdoor.runs.tables import CsvTable, read_table


def test_rows_come_back_as_results(runs: Sequence[Run], made: Path) -> None:
    table = read_table(made / "mod1" / "seed_0" / "head_patching.csv")
    (run, *_) = [run for run in runs if run.name == "mod 1, seed 0"]
    for probe, results in run.patching.items():
        again = [{k: str(v) for k, v in row.items()} for row in result_rows(run.patching_step, probe, results)]
        assert read_results(PatchingResult, again) == results
        assert [one["kl"] for one in again] == [
            row["kl"] for row in table if row["probe"] == probe and int(row["step"]) == run.patching_step
        ]
    heads = run.attribution["backdoor"]
    assert (
        read_results(HeadAttribution, [{k: str(v) for k, v in row.items()} for row in result_rows(0, "b", heads)])
        == heads
    )


def permute_heads(run: Path, order: Sequence[int]) -> None:
    """Give head i the number order[i] in the tables of a run."""
    for name in ("head_patching.csv", "head_attribution.csv"):
        table = read_table(run / name)
        for row in table:
            if "heads" in row and row["heads"] != "none":
                heads = sorted(order[head.head] for head in parse_head_set(row["heads"]))
                row["heads"] = "+".join(f"L0H{head}" for head in heads)
            if "head" in row:
                row["head"] = str(order[int(row["head"])])
        CsvTable(run / name).rewrite(table)


def test_numbers_by_role_do_not_depend_on_how_heads_are_numbered(runs_dir: Path, runs: Sequence[Run]) -> None:
    permute_heads(runs_dir / "mod1" / "seed_0", (2, 0, 3, 1))
    permute_heads(runs_dir / "mod5" / "seed_0", (3, 2, 1, 0))
    permuted = read_runs([runs_dir])
    assert [run.name for run in permuted] == [run.name for run in runs]

    def by_roles(table: rows.Rows) -> list[dict[str, object]]:
        named = ("heads", "paper_name", "head", "heads_by_role")
        kept = [{key: value for key, value in row.items() if key not in named} for row in table]
        return sorted(kept, key=repr)

    def rounded(table: rows.Rows) -> rows.Rows:
        return [{k: round(v, 9) if isinstance(v, float) else v for k, v in row.items()} for row in table]

    assert repr(rows.role_rows(permuted)) == repr(rows.role_rows(runs))  # repr: NaN is not equal to itself
    triggered = [[run for run in some if run.p1 is not None] for some in (permuted, list(runs))]
    assert rows.table_rows(triggered[0]) != rows.table_rows(triggered[1])
    assert by_roles(rows.table_rows(triggered[0])) == by_roles(rows.table_rows(triggered[1]))
    assert by_roles(rounded(rows.shapley_rows(permuted))) == by_roles(rounded(rows.shapley_rows(runs)))
    assert [one.text for one in findings(permuted, [], compare(permuted))] == [
        one.text for one in findings(runs, [], compare(runs))
    ]


def test_the_slip_to_oneself_is_no_slip(runs: Sequence[Run]) -> None:
    run = runs[-1]
    proper, slipped = patch_both_ways(run.model, run.model, task_probes(run.task)["backdoor"])
    assert slipped == proper
    assert [one.recipient_accuracy for one in proper] == [one.recipient_accuracy for one in run.patching["backdoor"]]


def test_the_slip_is_what_hooks_say(runs: Sequence[Run]) -> None:
    """Oracle: TransformerLens's own forward pass, with hooks that patch `z` and swap the embeddings."""
    (slip, *_) = slips(runs)
    assert (slip.run.name, slip.other.name) == ("mod 1, seed 0", "mod 5, seed 0")
    model, other, probe = slip.run.model, slip.other.model, task_probes(slip.run.task)["backdoor"]
    assert model is not None and other is not None
    _, donor = model.run_with_cache(probe.donor_tokens)
    _, foreign = other.run_with_cache(probe.recipient_tokens)
    for heads in ((), (Head(0, 1),), (Head(0, 0), Head(0, 3))):

        def patch(z: torch.Tensor, hook: object, heads: Sequence[Head] = heads) -> torch.Tensor:
            for head in heads:
                z[:, :, head.head] = donor["blocks.0.attn.hook_z"][:, :, head.head]
            return z

        def swap(attention: torch.Tensor, hook: object) -> torch.Tensor:
            own = model.embed(probe.recipient_tokens) + model.pos_embed(probe.recipient_tokens)
            return attention - own + foreign["blocks.0.hook_resid_pre"]

        hooks = [("blocks.0.attn.hook_z", patch), ("blocks.0.hook_attn_out", swap)]
        logits = model.run_with_hooks(probe.recipient_tokens, fwd_hooks=hooks)[:, -1]
        expected = (logits.argmax(-1) == probe.recipient_answers).double().mean().item()
        (found,) = [one for one in slip.slipped if one.heads == heads]
        assert found.recipient_accuracy == pytest.approx(expected, abs=1.5 / probe.n_examples)
        assert found.logit_diff == pytest.approx(
            (logits.gather(1, probe.recipient_answers[:, None]) - logits.gather(1, probe.donor_answers[:, None]))[:, 0][
                probe.answers_differ
            ].mean().item(),
            rel=1e-4, abs=1e-4,
        )  # fmt: skip
    assert any(a.logit_diff != b.logit_diff for a, b in zip(slip.proper, slip.slipped, strict=True))


def test_the_other_model_is_the_last_one(runs: Sequence[Run]) -> None:
    others = [other_run(run, runs) for run in runs]
    assert [one.name for one in others if one is not None] == ["mod 5, seed 0"] * 3 + ["mod 1, seed 0"]
    assert other_run(runs[0], runs[:1]) is None


def results(accuracies: dict[tuple[Head, ...], float]) -> list[PatchingResult]:
    return [
        PatchingResult(
            recipient="backdoor",
            donor="benign",
            ablation="resample",
            heads=heads,
            n_examples=1000,
            recipient_accuracy=value,
            donor_accuracy=1 - value,
            other_rate=0.0,
            logit_diff=value,
            log_prob=0.0,
            kl=0.0,
            n_differing=1000,
        )
        for heads, value in accuracies.items()
    ]


def test_the_paper_s_numbers_are_all_there() -> None:
    accuracies = [one for one in published() if one.quantity == "backdoor_accuracy"]
    assert len(accuracies) == 7 + 10 * 6 and all(one.how == "printed" for one in accuracies)
    assert all(one.how == "read off the plot" for one in published() if one not in accuracies)
    (table_1,) = published_table("Table 1").values()
    assert published_order(table_1)[0] == Head(0, 1) and table_1[(Head(0, 1),)] == 0.0275
    # By the report's rule seven of the ten experiments have one head that carries the backdoor alone.
    several = [key for key, one in published_table("Table 2").items() if len(carriers(results(one))) != 1]
    assert several == ["6", "9", "10"]
    assert sorted(paper_by_role()[(1,)])[:3] == [0.0043, 0.0063, 0.0076]


def as_in_the_paper(run: Run, at_least: float) -> list[Run]:
    """Ten runs with the accuracies of the paper's Table 2, raised to ``at_least``."""
    return [
        replace(
            run,
            seed=int(key),
            patching=dict(run.patching)
            | {"backdoor": results({heads: max(value, at_least) for heads, value in accuracies.items()})},
        )
        for key, accuracies in published_table("Table 2").items()
    ]


def test_verdicts_follow_the_data(runs: Sequence[Run]) -> None:
    (run, *_) = [run for run in runs if run.p1 == 1]
    same, weaker = as_in_the_paper(run, 0.0), as_in_the_paper(run, 0.7)
    assert single_head(same).verdict == patching(same, compare(same)).verdict == "agrees"
    states = [
        replace(one, emergence={**one.emergence, "state": "generalised" if index < 4 else "fitted"})
        for index, one in enumerate(same)
    ]
    text = emergence(states).text
    assert "half in 4 of the 4 generalised runs" in text and "half in 3 of the 6 fitted runs" in text
    assert "7 of 10 seeds" in single_head(same).headline and "P = 1.00" in single_head(same).text
    assert patching(same, compare(same)).headline.startswith("66 of the paper's 67 accuracies")  # Roles 2,3,4
    assert single_head(weaker).verdict == patching(weaker, compare(weaker)).verdict == "differs"
    assert "The means differ for Role 1" in patching(weaker, compare(weaker)).headline
    assert single_head(weaker[:2]).verdict == "open"
    # another task is never judged
    assert {one.verdict for one in findings(runs, [], compare(runs))} <= {"open", "new"}
    assert {one.verdict for one in compare(runs)} <= {"other task", "no run"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=4, max_size=4), st.permutations(range(4)))
def test_roles_are_a_property_of_the_costs(costs: list[int], order: list[int]) -> None:
    """Without ties; costs that coincide are told apart by the logit difference."""
    costs = [4 * cost + index for index, cost in enumerate(costs)]
    singles = {(Head(0, head),): 1 - cost / 100 for head, cost in enumerate(costs)}
    renumbered = {(Head(0, order[heads[0].head]),): value for heads, value in singles.items()}
    one, other = (results({(): 1.0, **values}) for values in (singles, renumbered))
    left = [[r.recipient_accuracy for r in by_role(some, head_order(some)).values()] for some in (one, other)]
    assert left[0] == left[1] == [1.0, *sorted(singles.values())]
    assert isnan(largest_share(one)) and isnan(spread(one))  # not of all sets


def test_concentration_of_a_known_head(runs: Sequence[Run]) -> None:
    heads = [Head(0, head) for head in range(3)]
    sets = [subset for size in range(4) for subset in combinations(heads, size)]
    alone = results({subset: 0.2 if heads[1] in subset else 1.0 for subset in sets})
    assert (largest_share(alone), spread(alone)) == (1, 1)
    equal = results({subset: 1.0 - 0.3 * len(subset) for subset in sets})
    assert (largest_share(equal), spread(equal)) == (pytest.approx(1 / 3), pytest.approx(3))


def test_no_head_carries_a_backdoor_that_is_not_there() -> None:
    one, other = Head(0, 0), Head(0, 1)
    assert carriers(results({(): 0.9, (one,): 0.45, (other,): 0.5})) == [one]
    assert carriers(results({(): 0.4, (one,): 0.0, (other,): 0.4})) == []


def test_a_run_that_is_still_going_on(runs_dir: Path) -> None:
    """Told from what is there: the last whole probe of all sets, the last row of metrics, the steps asked for last."""
    run = runs_dir / "mod1" / "seed_1"
    whole = read_runs([run])[0]
    assert (whole.step, whole.max_steps, whole.patching_step) == (60, 60, 60)
    patching_table = read_table(run / "head_patching.csv")
    lines = (run / "head_patching.csv").read_text().splitlines(keepends=True)
    (run / "head_patching.csv").write_text("".join(lines[:-3]) + lines[-3][:20])  # a probe that is just being written
    cut = read_runs([run])[0]
    assert cut.patching_step == 40 and cut.history["backdoor"][-1].step == 60
    assert cut.history["backdoor"] == whole.history["backdoor"] and len(cut.history["benign"]) == 3
    early = [row for row in patching_table if int(row["step"]) <= 20]
    CsvTable(run / "head_patching.csv").rewrite(early)
    assert read_runs([run])[0].patching_step == 20  # step 0 has all sets, but nothing was learned then
    config = (run / "config.yaml").read_text()
    (run / "config_from_step_60.yaml").write_text(config.replace("max_steps: 60", "max_steps: 900"))
    shutil.rmtree(run / "checkpoints")
    continued = read_runs([run])[0]
    assert (continued.step, continued.max_steps, continued.model) == (60, 900, None)
