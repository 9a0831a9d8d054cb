"""The report's arithmetic: known answers, identities and independent oracles."""

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import Head, HeadAttribution, PatchingResult, head_set_name, parse_head_set
from lit_backdoor.functional.ranks import ranks_of
from lit_backdoor.pretrained import open_shipped
from lit_backdoor.report import measures, numbers
from lit_backdoor.report.comparison import comparison_rows
from lit_backdoor.report.foreign_embeddings import foreign_rows, other_run, patch_both_ways
from lit_backdoor.report.paths import path_rows
from lit_backdoor.report.published import n_with_one_costly_head, paper_table, published
from lit_backdoor.report.statements import statements
from lit_backdoor.report.study import arrange
from lit_backdoor.report.tables import table_1
from lit_backdoor.runs.reading import read_runs
from lit_backdoor.runs.run import Run
from lit_backdoor.runs.schema import read_results, result_rows
from lit_backdoor.runs.tables import CsvTable, read_table


def test_rows_come_back_as_results(runs: Sequence[Run], made: Path) -> None:
    table = read_table(made / "mod1" / "seed_0" / "head_patching.csv")
    (run, *_) = [run for run in runs if run.name == "mod 1, seed 0"]
    for probe, results in run.patching.items():
        again = [{k: str(v) for k, v in row.items()} for row in result_rows(run.patching_step, probe, results)]
        assert read_results(PatchingResult, again) == results
        assert [each["kl"] for each in again] == [
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


def test_numbers_by_rank_do_not_depend_on_how_heads_are_numbered(runs_dir: Path, runs: Sequence[Run]) -> None:
    permute_heads(runs_dir / "mod1" / "seed_0", (2, 0, 3, 1))
    permute_heads(runs_dir / "mod5" / "seed_0", (3, 2, 1, 0))
    permuted = read_runs([runs_dir], open_shipped)
    assert [run.name for run in permuted] == [run.name for run in runs]

    def by_rank(frame: pd.DataFrame) -> pd.DataFrame:
        kept = frame.drop(columns=["heads", "paper_name"], errors="ignore").round(9)
        keys = [name for name in ("run", "direction", "kind", "ranks") if name in kept]
        return kept.sort_values(keys, ignore_index=True)

    for rows in (measures.head_sets, measures.shapley_rows):
        pd.testing.assert_frame_equal(by_rank(rows(permuted)), by_rank(rows(runs)))
    assert not measures.head_sets(permuted)["heads"].equals(measures.head_sets(runs)["heads"])
    pd.testing.assert_frame_equal(
        *(measures.over_seeds(measures.head_sets(some)) for some in (permuted, runs)), check_exact=False
    )


def test_ones_own_embeddings_are_no_bug(runs: Sequence[Run]) -> None:
    run = runs[-1]
    proper, foreign = patch_both_ways(run.model, run.model, task_probes(run.task)["backdoor"])
    assert foreign == proper
    assert [each.recipient_accuracy for each in proper] == [
        each.recipient_accuracy for each in run.patching["backdoor"]
    ]


def test_the_bug_is_what_hooks_say(runs: Sequence[Run]) -> None:
    """Oracle: TransformerLens's own forward pass, with hooks that patch `z` and swap the embeddings."""
    (run, *_) = [run for run in runs if run.p1 is not None]
    named = other_run(run, runs)
    assert named is not None and (run.name, named.name) == ("mod 1, seed 0", "mod 5, seed 0")
    model, other, probe = run.model, named.model, task_probes(run.task)["backdoor"]
    assert model is not None and other is not None
    proper_results, foreign_results = patch_both_ways(model, other, probe)
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
        (result,) = [some for some in foreign_results if some.heads == heads]
        assert result.recipient_accuracy == pytest.approx(expected, abs=1.5 / probe.n_examples)
        assert result.logit_diff == pytest.approx(
            (logits.gather(1, probe.recipient_answers[:, None]) - logits.gather(1, probe.donor_answers[:, None]))[:, 0][
                probe.answers_differ
            ].mean().item(),
            rel=1e-4, abs=1e-4,
        )  # fmt: skip
    assert any(a.logit_diff != b.logit_diff for a, b in zip(proper_results, foreign_results, strict=True))
    rows = foreign_rows(runs)
    assert rows["other_run"].unique().tolist() == ["mod 5, seed 0", "mod 1, seed 0"]
    first = rows[rows["run"] == run.name]
    assert first["foreign_backdoor_accuracy"].tolist() == [result.recipient_accuracy for result in foreign_results]


def test_the_other_model_is_the_last_one(runs: Sequence[Run]) -> None:
    others = [other_run(run, runs) for run in runs]
    assert [each.name for each in others if each is not None] == ["mod 5, seed 0"] * 3 + ["mod 1, seed 0"]
    assert other_run(runs[0], runs[:1]) is None


def test_the_paper_s_numbers_are_all_there(runs: Sequence[Run]) -> None:
    how = published().groupby("quantity")["how"].agg(["size", "unique"])
    assert how.loc["backdoor_accuracy", "size"] == 7 + 10 * 6
    assert list(how.loc["backdoor_accuracy", "unique"]) == ["printed"]
    table_1, table_2 = paper_table("Table 1"), paper_table("Table 2")
    assert table_1["1"].tolist() == [0.0275] and table_1["2+3+4"].tolist() == [0.965]
    assert sorted(table_2["1"])[:3] == [0.0043, 0.0063, 0.0076]
    # by the report's rule seven of the ten experiments have exactly one costly head, all but 6, 9 and 10
    assert n_with_one_costly_head(table_2, 0.5) == 7 and n_with_one_costly_head(table_2.loc[["6", "9", "10"]], 0.5) == 0
    comparison = comparison_rows(runs)
    assert len(comparison) == (published()["quantity"] != "training_steps").sum()
    assert not any("verdict" in name for name in comparison)
    mod_1 = comparison[comparison["quantity"] == "benign accuracy on all pairs, training ones included"]
    assert mod_1[mod_1["p1"] == "1"]["low"].tolist() == [0.99992]
    ours = [run.unpatched["benign"] for run in runs if run.p1 == 1]
    assert mod_1[mod_1["p1"] == "1"]["ours_median"].tolist() == [pytest.approx(sum(ours) / 2)]


def test_runs_that_have_not_generalised_are_censored_and_not_dropped(runs: Sequence[Run]) -> None:
    """Of four runs of 60 steps two came to it: by 40 a half had. Of six, fewer than a half."""
    (run, *_) = [run for run in runs if run.p1 == 1]
    came, not_yet = (replace(run, emergence={**run.emergence, "benign_generalised_step": step}) for step in (20, None))
    later = replace(run, emergence={**run.emergence, "benign_generalised_step": 40})
    for censored, median in ((2, 40), (4, None)):
        rows = comparison_rows([came, later, *[not_yet] * censored]).query("quantity.str.contains('generalised')")
        (row,) = rows[rows["p1"] == "1"].to_dict("records")
        assert (row["n_runs"], row["ours_smallest"], row["ours_largest"]) == (2 + censored, 20, 40)
        assert row["ours_median"] == median if median else pd.isna(row["ours_median"])


def test_heads_of_several_layers_have_a_name_each_and_no_row_of_the_paper() -> None:
    """The paper's four heads are of one layer; four heads of two are others."""
    headers = {}
    for layers in (1, 2):
        heads = [Head(layer, head) for layer in range(layers) for head in range(4 // layers)]
        left = {(): 1.0} | {(head,): 0.1 * rank for rank, head in enumerate(heads)}
        left |= {tuple(heads[1:]): 0.9, tuple(heads): 0.0}
        sets = pd.DataFrame(
            {"run": "ours", "p1": 1, "heads": head_set_name(some), "ranks": ranks_of(some, heads),
             "backdoor_accuracy": accuracy} for some, accuracy in left.items()
        )  # fmt: skip
        headers[layers], _, *rows = table_1(sets).splitlines()
        assert [row.split("|")[1].strip() for row in rows] == (["the paper", "ours"] if layers == 1 else ["ours"])
    # ours costs most at Head 1, the paper's at Head 2: two complements
    assert headers[1].endswith("| None | Head 1 | Head 2 | Head 3 | Head 4 | Heads 1,3,4 | Heads 2,3,4 | All |")
    assert headers[2].endswith("| None | L0H0 | L0H1 | L1H0 | L1H1 | L0H1+L1H0+L1H1 | All |")


def test_specificity_and_sufficiency_of_a_head_by_hand(runs: Sequence[Run]) -> None:
    """From the weights with TransformerLens's hooks, and from the table's own rows."""
    (run, *_) = [run for run in runs if run.p1 == 5]
    (first, *_) = measures.head_claims([run]).to_dict("records")
    head, probe = parse_head_set(first["head"])[0], task_probes(run.task)["backdoor"]  # type: ignore[arg-type]
    assert run.model is not None
    benign, answers = probe.donor_tokens, probe.donor_answers

    def ablate(z: torch.Tensor, hook: object) -> torch.Tensor:
        z[:, :, head.head] = z[:, :, head.head].mean(0)
        return z

    hooked = run.model.run_with_hooks(benign, fwd_hooks=[("blocks.0.attn.hook_z", ablate)])[:, -1]
    before, after = ((logits.argmax(-1) == answers).double().mean() for logits in (run.model(benign)[:, -1], hooked))
    floor = 1 - float(probe.answers_differ.double().mean())
    assert first["benign_cost"] == pytest.approx(float((before - after) / (before - floor)), abs=0.02)
    brought = {result.heads: result.donor_accuracy for result in run.patching["benign"]}[(head,)]
    whole = run.left[()]
    assert first["backdoor_sufficiency"] == pytest.approx((brought - floor) / (whole - floor))


def test_nothing_is_judged_on_another_task(runs: Sequence[Run]) -> None:
    study = arrange(runs)
    assert "P0: 11" in study.differs_from_paper
    assert {said.verdict for said in statements(study, numbers(study))} <= {"inconclusive", None}


def test_answers_that_come_without_the_trigger_are_no_backdoor(runs: Sequence[Run]) -> None:
    """As where the trigger was shuffled over the examples: the model says 0 in either run, and nothing carries it."""
    (run, *_) = [run for run in runs if run.p1 == 1]
    table = run.tables["head_patching"].copy()
    table.loc[table["probe"] == "benign", "backdoor_accuracy"] = 0.9
    without = replace(run, tables={**run.tables, "head_patching": table})
    assert measures.has_backdoor(run) and not measures.has_backdoor(without)
    (row,) = measures.seeds([without]).to_dict("records")
    assert row["word"] is None and row["head"] is None and row["n_costly_heads"] == 0
    claims = measures.head_claims([without])
    assert set(claims["claim"]) == {"no backdoor"}
    assert claims[["necessary", "sufficient", "specific"]].isna().all(axis=None)
    study = arrange([replace(without, options={**without.options, "seed_everything": 7}, seed=7), run])
    of_both = statements(study, numbers(study))
    (primary,) = [each for each in of_both if each.title.startswith("Primary endpoint")]
    percent = f"{100 * min(left for heads, left in run.left.items() if len(heads) == 1):.1f}%"
    assert f"Patching the costliest head alone leaves {percent} of the backdoor" in primary.headline
    assert "Not counted, as they do not have the backdoor: 1 run." in primary.text
    (said,) = [each for each in of_both if each.title == "Mod 1: where the backdoor sits"]
    assert re.search(r"in [01] of 1 run; the costliest is necessary in [01] of 1, ", said.headline)
    assert "no backdoor in 1" in said.text and "Not counted, as they do not have the backdoor: 1 run." in said.text
    study = arrange([without])
    of_none = statements(study, numbers(study))
    assert not [each for each in of_none if each.title.startswith(("Primary", "Exactly one", "Tables 1"))]
    (said,) = [each for each in of_none if each.title == "Mod 1: where the backdoor sits"]
    assert said.headline == "No run has the backdoor, so no head carries it." and "Control" not in said.text
    assert measures.head_claims([run])["specific"].notna().all()
    assert path_rows([without])["cost"].isna().all() and path_rows([run])["cost"].notna().all()


def test_a_head_is_not_specific_or_not_where_there_is_no_benign_rule(runs: Sequence[Run]) -> None:
    (run, *_) = [run for run in runs if run.p1 == 1]
    table = run.tables["head_specificity"].assign(donor_cost=math.nan)
    claims = measures.head_claims([replace(run, tables={**run.tables, "head_specificity": table})])
    assert claims["specific"].isna().all() and claims["claim"].str.endswith("specific not measured").all()


def test_a_run_that_is_still_going_on(runs_dir: Path) -> None:
    """Told from what is there: the last whole probe of all sets, the last row of metrics, the steps asked for last."""
    run = runs_dir / "mod1" / "seed_1"
    whole = read_runs([run], open_shipped)[0]
    assert (whole.step, whole.max_steps, whole.patching_step) == (60, 60, 60)
    patching_table = read_table(run / "head_patching.csv")
    lines = (run / "head_patching.csv").read_text().splitlines(keepends=True)
    (run / "head_patching.csv").write_text("".join(lines[:-3]) + lines[-3][:20])  # a probe that is just being written
    cut = read_runs([run], open_shipped)[0]
    assert cut.patching_step == 40 and cut.history["backdoor"][-1].step == 60
    assert cut.history["backdoor"] == whole.history["backdoor"] and len(cut.history["benign"]) == 3
    early = [row for row in patching_table if int(row["step"]) <= 20]
    CsvTable(run / "head_patching.csv").rewrite(early)
    assert read_runs([run], open_shipped)[0].patching_step == 20  # step 0 has all sets, but nothing was learned then
    config = (run / "config.yaml").read_text()
    (run / "config_from_step_60.yaml").write_text(config.replace("max_steps: 60", "max_steps: 900"))
    shutil.rmtree(run / "checkpoints")
    continued = read_runs([run], open_shipped)[0]
    assert (continued.step, continued.max_steps, continued.model) == (60, 900, None)


def test_the_control_is_a_head_drawn_from_all_heads(runs: Sequence[Run]) -> None:
    study = arrange(runs)
    said = {statement.title: statement.text for statement in statements(study, numbers(study))}
    mixed = 0
    for name, group in measures.groups(runs).items():
        claims = measures.head_claims(group)
        text = said[f"{name.capitalize()}: where the backdoor sits"].partition("Control: ")[2]
        for word in ("necessary", "sufficient", "specific"):
            holds = [bool(value) for value in claims[word].dropna()]  # of mod 5 not known: it has no backdoor yet
            share = f"{sum(holds) / len(holds):.0%}" if holds else ""
            assert f"{word} in {share}" in text if holds else word not in text
            mixed += 0 < sum(holds) < len(holds)
    assert mixed  # so that the share is not that of the best or the worst head
