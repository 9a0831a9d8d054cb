"""The example of a task of one's own: the induction head is found, and is what the usual score says it is."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from examples.induction import induction, results
from examples.induction.induction import InductionModule, RepeatedSequences, attention_scores
from examples.induction.results import loss_bend
from lit_backdoor.callbacks import HeadClamp, HeadPatchingMonitor
from lit_backdoor.cli.main import main
from lit_backdoor.functional import parse_edge_set, patch_paths
from lit_backdoor.runs.weights import kept_weights, load_weights, read_weights
from tests.helpers import ROOT
from tests.helpers.runs import metrics, read_rows

EXAMPLE = ROOT / "examples" / "induction"
STEPS = 500


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped configuration, only shorter."""
    folder = tmp_path_factory.mktemp("induction")
    options = [f"--trainer.max_steps={STEPS}", "--trainer.enable_progress_bar=false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["induction.py"])  # LightningCLI warns about arguments given both ways
        induction.main(["fit", f"--config={EXAMPLE / 'config.yaml'}", *options])
    return folder / "lightning_logs" / "version_0"


def last_patching(run: Path) -> dict[str, dict[str, str]]:
    """By set of heads."""
    return {row["heads"]: row for row in read_rows(run / "head_patching.csv") if int(row["step"]) == STEPS}


def test_patching_finds_the_induction_head_in_layer_1(run: Path) -> None:
    head = json.loads((run / "emergence.json").read_text())["head"]
    assert head in ("L1H0", "L1H1")
    rows = last_patching(run)
    assert float(rows["none"]["repeated_accuracy"]) > 0.95
    assert float(rows[head]["repeated_accuracy"]) < 0.1  # needed
    assert float(rows[head]["shuffled_accuracy"]) > 0.9  # and enough: it brings the donor's answer with it
    layer_0 = rows["L0H0+L0H1"]  # needed too, but it only says where to look
    assert float(layer_0["repeated_accuracy"]) < 0.3
    assert float(layer_0["shuffled_accuracy"]) < 0.3


def test_the_patched_head_is_the_one_with_the_prefix_matching_score(run: Path) -> None:
    head = json.loads((run / "emergence.json").read_text())["head"]
    last = [row for row in metrics(run) if row["val/loss"]][-1]
    assert int(last["step"]) == STEPS
    scores = {name.rsplit("/")[-1]: float(last[name]) for name in last if name.startswith("val/prefix_matching")}
    assert max(scores, key=lambda name: scores[name]) == head
    assert scores[head] > 0.7
    assert max(scores["L0H0"], scores["L0H1"]) < 0.2
    previous = {name.rsplit("/")[-1]: float(last[name]) for name in last if name.startswith("val/previous_token")}
    assert max(previous, key=lambda name: previous[name]).startswith("L0")


def test_layer_0_reaches_the_induction_head_through_its_key_alone(run: Path) -> None:
    model, probe = read_weights(kept_weights(run)[STEPS]).model, RepeatedSequences().probes()["induction"]
    model.set_use_split_qkv_input(True)
    induction_head = json.loads((run / "emergence.json").read_text())["head"]

    layer_0 = ("L0H0", "L0H1")
    both = {part: "+".join(f"{head}>{induction_head}.{part}" for head in layer_0) for part in "QKV"}
    sets = ["none", *both.values()]
    results = patch_paths(model, probe, [parse_edge_set(edges) for edges in sets])
    left = dict(zip(sets, (result.recipient_accuracy for result in results), strict=True))
    assert min(left["none"], left[both["Q"]], left[both["V"]]) > 0.95
    assert left[both["K"]] < 0.3


def test_it_writes_the_answer_itself_and_layer_0_does_not(run: Path) -> None:
    head = json.loads((run / "emergence.json").read_text())["head"]
    rows = [row for row in read_rows(run / "head_attribution.csv") if int(row["step"]) == STEPS]
    writes = {f"L{row['layer']}H{row['head']}": float(row["mean_logit_diff"]) for row in rows}
    assert writes[head] > 3
    assert max(abs(writes["L0H0"]), abs(writes["L0H1"])) < 1


def test_it_emerges_where_the_loss_bends(run: Path) -> None:
    verdict = json.loads((run / "emergence.json").read_text())
    measured = [row for row in metrics(run) if row["train/repeated_loss"]]
    losses = [float(row["train/repeated_loss"]) for row in measured]
    start, steepest, end = loss_bend([int(row["step"]) for row in measured], losses)
    assert end - start < STEPS / 4  # it is a bend, and no slope
    assert losses[0] > 4 > 0.5 > losses[-1]
    assert start <= verdict["first_cost_step"]
    assert verdict["first_cost_previous_step"] <= end
    assert abs(verdict["first_cost_step"] - steepest) <= 50


@pytest.mark.usefixtures("painted")
def test_the_results_are_printed_and_drawn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.main([str(run), str(tmp_path / "run.png")])
    printed = capsys.readouterr().out
    verdict = json.loads((run / "emergence.json").read_text())
    head = verdict["head"]
    between = f"from a step between {verdict['first_cost_previous_step']} and {verdict['first_cost_step']} on"
    assert f"A head is needed {between}; at the end {head} is needed most" in printed
    row = last_patching(run)[head]
    assert f"| {head} | {float(row['repeated_accuracy']):.2f} | {float(row['shuffled_accuracy']):.2f} |" in printed
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_run_is_an_error_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        results.main([str(tmp_path), str(tmp_path / "run.png")])
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def followed(row: list[int]) -> int:
    """What stands after the first occurrence of a row's last token."""
    return row[row.index(row[-1]) + 1]


def test_both_answers_are_what_followed_the_last_token_before() -> None:
    data = RepeatedSequences(d_vocab=20, n_ctx=12, longest_period=11, n_val=300, seed=3)
    probe = data.probes()["induction"]
    assert probe.n_examples > 200
    rows = zip(
        probe.recipient_tokens.tolist(), probe.donor_tokens.tolist(), probe.recipient_answers, probe.donor_answers,
        strict=True,
    )  # fmt: skip
    for recipient, donor, recipient_answer, donor_answer in rows:
        assert followed(recipient) == recipient_answer
        assert followed(donor) == donor_answer != recipient_answer
        assert sorted(recipient[:6]) == sorted(donor[:6])
        assert recipient[6:] == donor[6:]


def test_sequences_start_again_after_periods_that_differ() -> None:
    tokens, periods = RepeatedSequences(d_vocab=33, n_ctx=32, n_val=100).val_batch
    assert tokens.shape == (100, 33)
    assert set(periods.tolist()) <= set(range(16, 29))
    assert len(set(periods.tolist())) > 5
    for row, period in zip(tokens.tolist(), periods.tolist(), strict=True):
        assert len(set(row[:period])) == period
        assert row[period:] == row[: 33 - period]


def test_scores_of_patterns_that_are_known() -> None:
    period = torch.tensor([4, 5])
    patterns = torch.zeros(2, 2, 8, 8)  # head 0 matches prefixes, head 1 looks one back
    for row, length in enumerate(period.tolist()):
        for query in range(8):
            patterns[row, 0, query, max(query - length + 1, 0)] = 1
            patterns[row, 1, query, max(query - 1, 0)] = 1
    prefix_matching, previous_token = attention_scores(patterns, period)
    assert prefix_matching.tolist() == [1, 0]
    assert previous_token[1] == 1 > previous_token[0]


def test_the_bend_of_a_known_curve() -> None:
    steps = list(range(9, 1000, 10))
    losses = [3 / (1 + 2.718 ** ((step - 400) / 20)) for step in steps]
    start, steepest, end = loss_bend(steps, losses)
    assert abs(steepest - 400) <= 10
    # a logistic curve's slope is half its steepest at 1.76 widths to either side
    assert abs(start - 365) <= 15
    assert abs(end - 435) <= 15
    with pytest.raises(ValueError, match="too few"):
        loss_bend(steps[:5], losses[:5])


@pytest.mark.parametrize(("d_vocab", "longest_period"), [(64, 15), (64, 32), (20, 21)])
def test_periods_that_do_not_fit_are_refused(d_vocab: int, longest_period: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.longest_period: {longest_period} is out of range; 16 .* to \d+"):
        RepeatedSequences(d_vocab=d_vocab, n_ctx=32, longest_period=longest_period)


def own_probes() -> object:
    """For `replay`, which knows no datamodule of the example's."""
    return RepeatedSequences().probes()


def test_a_replay_of_its_weights_is_the_live_run_byte_for_byte(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((EXAMPLE / "config.yaml").read_text())
    monitors = [entry for entry in config["trainer"]["callbacks"] if "Head" in entry["class_path"]]
    for entry in monitors:
        entry["init_args"]["probes"] = "tests.examples.test_induction.own_probes"
    monitors.insert(0, {"class_path": "lit_backdoor.callbacks.EmergenceMonitor", "init_args": {"probe": "induction"}})
    (tmp_path / "monitors.yaml").write_text(yaml.safe_dump({"callbacks": monitors}))
    args = ["replay", str(run), "--config", str(tmp_path / "monitors.yaml"), "--output_dir", str(tmp_path / "out")]
    assert main(args) == 0
    for name in ("head_attribution.csv", "head_patching.csv", "emergence.json"):
        assert (tmp_path / "out" / name).read_bytes() == (run / name).read_bytes(), name


def test_under_a_clamp_the_other_head_of_layer_1_takes_over(run: Path, tmp_path: Path) -> None:
    """What was the induction head writes nothing while training goes on from the weights that it had."""
    head = json.loads((run / "emergence.json").read_text())["head"]
    other = next(name for name in ("L1H0", "L1H1") if name != head)
    module = InductionModule()
    load_weights(module.net, kept_weights(run)[STEPS])
    options: dict[str, Any] = {"model_attr": "net", "every_n_steps": 150, "ablations": ["zero"]}
    monitors = [HeadPatchingMonitor(**options), HeadPatchingMonitor(**options, clamped=True, name="clamped")]
    clamp = HeadClamp(head, "zero", model_attr="net")
    trainer = Trainer(
        callbacks=[*monitors, clamp], default_root_dir=tmp_path, accelerator="cpu", max_steps=150, logger=False,
        limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, RepeatedSequences(seed=1))
    tables = [read_rows(tmp_path / f"head_patching{name}.csv") for name in ("", "_clamped")]

    def accuracy(table: list[dict[str, str]], step: int, heads: str) -> float:
        (row,) = (row for row in table if (row["step"], row["heads"]) == (str(step), heads))
        return float(row["repeated_accuracy"])

    plain, clamped = tables
    assert accuracy(clamped, 0, "none") == accuracy(plain, 0, head) < 0.8
    assert accuracy(clamped, 150, "none") > 0.95
    assert accuracy(clamped, 150, other) < 0.1
    assert accuracy(plain, 0, other) > 0.9  # before, the other was not needed
