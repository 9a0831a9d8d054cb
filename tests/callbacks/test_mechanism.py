"""The monitors of paths, attention, specificity, neurons and progress measures.

On a real fit, on a model whose backdoor head is known, and on deeper models.
"""

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_backdoor.callbacks import (
    AttentionMonitor,
    ContractError,
    EmergenceMonitor,
    HeadPatchingMonitor,
    NeuronMonitor,
    PathPatchingMonitor,
    ProgressMeasureMonitor,
    Recorder,
    SpecificityMonitor,
)
from lit_backdoor.datamodule import BackdoorDataModule, task_probes
from lit_backdoor.functional import (
    HeadProgress,
    HeadSpecificity,
    NeuronCounts,
    PathPatchingResult,
    PositionAttention,
    RuleExamples,
)
from lit_backdoor.runs.file_names import ATTENTION, HEAD_SPECIFICITY, NEURONS, PATH_PATCHING, PROGRESS_MEASURES
from lit_backdoor.runs.schema import TABLES, read_results, result_rows
from tests.helpers import both_kinds
from tests.helpers.known_head import TASK, hand_built
from tests.helpers.pictures import painted_pictures
from tests.helpers.runs import read_events, read_rows, scalars, train_run
from tests.helpers.tiny_models import make_model, trigger_probe

RESULTS: dict[str, type] = {
    PATH_PATCHING: PathPatchingResult,
    ATTENTION: PositionAttention,
    HEAD_SPECIFICITY: HeadSpecificity,
    NEURONS: NeuronCounts,
    PROGRESS_MEASURES: HeadProgress,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of debug.yaml, as it ships."""
    with painted_pictures():
        return train_run(tmp_path_factory.mktemp("mechanism") / "runs" / "live", "--trainer.max_steps=210")


# On a real fit


@pytest.mark.parametrize("name", RESULTS)
def test_every_table_has_its_columns_and_comes_back_as_it_was(run: Path, name: str) -> None:
    rows = read_rows(run / name)
    assert {column.name for column in TABLES[name]} - {"recipient_accuracy", "donor_accuracy"} <= set(rows[0])
    for column in TABLES[name]:
        assert all(column.accepts(row[column.name]) for row in rows if column.name in row), column
    for row, result in zip(rows, read_results(RESULTS[name], rows), strict=True):
        again = result_rows(int(row["step"]), row["probe"], [result])[0]
        assert {key: str(value) for key, value in again.items()} == row


def test_groups_come_often_and_single_edges_seldom(run: Path) -> None:
    rows = read_rows(run / PATH_PATCHING)
    counts = {step: sum(row["step"] == step for row in rows) for step in ("0", "100", "200", "210")}
    assert counts == {"0": 2 * 35, "100": 2 * 9, "200": 2 * 9, "210": 2 * 35}
    header = "step,probe,recipient,donor,edges,group,n_examples,backdoor_accuracy,benign_accuracy,other_rate,logit_diff"
    assert list(rows[0]) == [*header.split(","), "log_prob", "kl", "n_differing"]
    # every head's query, key and value together are head patching of all heads
    patching = [row for row in read_rows(run / "head_patching.csv") if row["heads"].count("L") == 4]
    heads = {(row["step"], row["probe"]): row for row in patching}
    for row in rows:
        if row["group"] == "QKV":
            other = heads[row["step"], row["probe"]]
            for column in ("backdoor_accuracy", "benign_accuracy", "log_prob"):
                assert float(row[column]) == pytest.approx(float(other[column]), abs=1e-3), column


def test_the_verdict_says_when_attention_was_captured(run: Path) -> None:
    from lit_backdoor.runs.verdict import read_verdict

    verdict = json.loads((run / "emergence.json").read_text())
    rows = [row for row in read_rows(run / ATTENTION) if row["probe"] == "backdoor"]
    moved: dict[str, dict[int, float]] = {}
    for row in rows:
        of_head = moved.setdefault(f"L{row['layer']}H{row['head']}", {})
        of_head[int(row["step"])] = of_head.get(int(row["step"]), 0.0) + abs(float(row["shift"])) / 2
    head = max(moved, key=lambda name: moved[name][210])
    assert verdict["capture_head"] == head
    captured = [step for step, value in moved[head].items() if value >= moved[head][210] / 2 and step < 0.9 * 210]
    assert verdict["capture_step"] == (captured[0] if captured else None)
    older = {"probe": "backdoor", "backdoor_head": "L0H3", "emergence_step": 200, "threshold": 0.5}
    (run / "emergence.json").write_text(json.dumps(older))
    assert read_verdict(run) == verdict
    (run / "emergence.json").write_text(json.dumps(verdict, indent=2) + "\n")


def test_loggers_get_curves_and_pictures(run: Path) -> None:
    points, events = scalars(run), read_events(run)
    for tag in (
        "paths_backdoor/backdoor_accuracy/Q",
        "paths_benign/log_prob/A_logits",
        "attention_backdoor/moved/L0H1",
    ):
        assert [step for step, _ in points[tag]] == [0, 100, 200, 210], tag
    assert "progress_backdoor/cosine/L0H0" in points and "specificity_backdoor/cost/L0H3" in points
    pictures = {f"figures/{name}_{probe}" for name in ("paths", "circuit") for probe in ("backdoor", "benign")}
    pictures |= {f"figures/{name}" for name in ("attention", "head_specificity", "progress_measures")}
    assert pictures <= set(events.Tags()["images"])
    assert all(min(image.width, image.height) > 200 for tag in pictures for image in events.Images(tag))


# On a model with a known answer


def test_the_known_head_is_read_as_exactly_that(tmp_path: Path) -> None:
    """The trigger is the value of head 2, which the logits read; everything else costs nothing."""
    data = BackdoorDataModule(list(TASK.moduli), split="pairs")
    monitors: list[Any] = [PathPatchingMonitor(), AttentionMonitor(), SpecificityMonitor(), HeadPatchingMonitor()]
    with Recorder([*monitors, EmergenceMonitor("backdoor")], tmp_path / "run", probes=data) as recorder:
        recorder(0, hand_built())
    rows = [row for row in read_rows(tmp_path / "run" / PATH_PATCHING) if row["probe"] == "backdoor"]
    gone = {row["group"] or row["edges"] for row in rows if float(row["backdoor_accuracy"]) == 0}
    assert gone == {"V", "QKV", "A_logits", "trigger>L0H2.V", "L0H2>logits"}
    assert {float(row["backdoor_accuracy"]) for row in rows} == {0.0, 1.0}
    brought = [row for row in read_rows(tmp_path / "run" / PATH_PATCHING) if row["probe"] == "benign"]
    assert gone == {row["group"] or row["edges"] for row in brought if float(row["backdoor_accuracy"]) == 1}
    costs = read_results(HeadSpecificity, read_rows(tmp_path / "run" / HEAD_SPECIFICITY)[:4])
    # 1/7 of the answers are the same in both runs, and here even those are lost: more than all above the floor
    assert [each.cost for each in costs] == pytest.approx([0.0, 0.0, 7 / 6, 0.0])
    attention = read_results(PositionAttention, read_rows(tmp_path / "run" / ATTENTION))
    assert all(abs(each.shift) < 1e-12 for each in attention)  # it looks at itself in both runs
    assert json.loads((tmp_path / "run" / "emergence.json").read_text())["capture_head"] is None


# On deeper models, and bad input


def test_a_deeper_model_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    model, probes = make_model(n_layers=2), {"trigger": trigger_probe()}
    settings = {name: getattr(model.cfg, name) for name in ("use_split_qkv_input", "use_hook_mlp_in")}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    monitors: list[Any] = [PathPatchingMonitor(max_examples=5), AttentionMonitor(), NeuronMonitor()]
    with Recorder(monitors, tmp_path / "run", probes=probes) as recorder:
        recorder(0, model)
    assert {name: getattr(model.cfg, name) for name in settings} == settings
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights.items())
    rows = read_rows(tmp_path / "run" / PATH_PATCHING)
    assert {row["n_examples"] for row in rows} == {"5"} and any(row["edges"] == "L0H0>L1H1.K" for row in rows)
    assert {row["score_gap"] for row in read_rows(tmp_path / "run" / ATTENTION)} == {"nan"}
    assert not (tmp_path / "run" / NEURONS).exists()
    assert "neurons/not_measured/text_summary" in read_events(tmp_path / "run").Tags()["tensors"]


def test_progress_measures_need_rules(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"ProgressMeasureMonitor has no rules.* a method rules\(\)"):
        Recorder([ProgressMeasureMonitor()], tmp_path / "run", probes=task_probes(TASK))(0, hand_built())
    untrained = {"benign": RuleExamples(7, TASK.tokens(0), torch.zeros(49, dtype=torch.bool))}
    with pytest.raises(ContractError, match="no pair is trained on"):
        Recorder([ProgressMeasureMonitor(rules=untrained)], tmp_path / "run")(0, hand_built())
    trained = {"benign": RuleExamples(7, TASK.tokens(0), torch.ones(49, dtype=torch.bool))}
    for model, words in (
        (both_kinds.make_model("TransformerBridge", n_layers=1, n_ctx=3), r"blocks\.0\.attn\.W_Q of TransformerBridge"),
        (SimpleNamespace(W_U=torch.zeros(12, 7)), "no attribute 'W_Q'"),
        (make_model(d_vocab_out=6), "out of bounds"),
    ):
        with pytest.raises(ContractError, match=rf"ProgressMeasureMonitor can't measure .* on this model: .*{words}"):
            Recorder([ProgressMeasureMonitor(rules=trained)], tmp_path / "run")(0, model)
    assert not (tmp_path / "run").exists()


def test_progress_measures_remember_what_they_draw(tmp_path: Path) -> None:
    """Across a restart, as plain numbers, and what is measured again is there once."""
    data = BackdoorDataModule([11, 1])
    monitor = ProgressMeasureMonitor(every_n_steps=1, rules=data.rules())
    recorder = Recorder([monitor], tmp_path / "run")
    for step in (0, 1, 2):
        recorder(step, make_model(d_vocab=11, d_vocab_out=11, n_ctx=3))
    again = ProgressMeasureMonitor(rules=data.rules())
    again.load_state_dict(json.loads(json.dumps(monitor.state_dict()), object_hook=_int_keys))
    assert str(again.history) == str(monitor.history) and set(again.history["backdoor"]) == {0, 1, 2}
    again.forget(2)
    assert set(again.history["benign"]) == {0, 1}
    again.load_state_dict({})  # a checkpoint of an older version
    assert again.history == {}


def _int_keys(loaded: dict[str, Any]) -> dict[Any, Any]:
    return {int(key) if key.isdecimal() else key: value for key, value in loaded.items()}


def test_rules_are_the_pairs_that_train() -> None:
    data = BackdoorDataModule([7, 3], trigger_position=0, train_fraction=0.4)
    for index, rule in enumerate(data.rules().values()):
        own = data.train_examples.tokens[data.train_examples.rules == index]
        assert torch.equal(rule.tokens[rule.trained].unique(dim=0), own.unique(dim=0))
        assert torch.equal(rule.answers, data.task.answers(index))


def test_progress_measures_of_the_last_step_are_those_of_its_losses(run: Path) -> None:
    rows = [row for row in read_rows(run / PROGRESS_MEASURES) if row["step"] == "210"]
    (loss,) = {row["train/loss"] for row in read_rows(run / "metrics.csv") if row["step"] == "210"}
    by_rule = {row["probe"]: float(row["train_loss"]) for row in rows}
    rules = BackdoorDataModule([29, 1], train_fraction=0.6).rules()
    trained = {name: int(rule.trained.sum()) for name, rule in rules.items()}
    mean = sum(by_rule[name] * n for name, n in trained.items()) / sum(trained.values())
    assert mean == pytest.approx(float(loss), rel=0.3, abs=1e-6)  # metrics.csv has the loss before the last step
    for head in {row["head"] for row in rows}:
        assert sum(float(row["gradient_share"]) for row in rows if row["head"] == head) == pytest.approx(1)
    assert {field.name for field in fields(HeadProgress)} - {"head"} <= set(rows[0])
