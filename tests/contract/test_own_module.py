"""Somebody else's LightningModule, with the monitors: what they write, against hooks by hand."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_backdoor.callbacks import (
    ContractError,
    EmergenceMonitor,
    HeadAttributionMonitor,
    HeadPatchingMonitor,
    LossSpikeMonitor,
    RunCheckpoint,
)
from lit_backdoor.functional import Probe, all_heads, head_name, parse_head_set
from tests.helpers import by_hand
from tests.helpers.both_kinds import HAS_HOOKED_TRANSFORMER, KINDS, make_model
from tests.helpers.copy_task import SHAPE, CopyDataWithProbes, CopyModule, CopyProbes, OneBatch, copy_probes, train

from .conftest import Fit, Rows

WHERE: dict[str, Any] = {"probes": copy_probes(), "model_attr": "parts.net"}
PROBE = WHERE["probes"]["copy"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bitwise_the_same_with_and_without(fit: Fit, kind: str, tmp_path: Path) -> None:
    watch = (
        HeadAttributionMonitor(every_n_steps=2, **WHERE),
        HeadPatchingMonitor(every_n_steps=3, full_every_n_steps=3, ablations=("resample", "mean", "zero"), **WHERE),
        EmergenceMonitor("copy"),
        LossSpikeMonitor(),
    )
    watched, bare = fit(*watch, kind=kind), fit(kind=kind, default_root_dir=tmp_path / "bare")
    for each, other in zip(watched.parameters(), bare.parameters(), strict=True):
        assert torch.equal(each, other)
    assert not (tmp_path / "bare").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_attribution_is_what_stack_head_results_gives(fit: Fit, rows: Rows, kind: str) -> None:
    model = fit(HeadAttributionMonitor(every_n_steps=4, **WHERE), kind=kind).parts["net"]
    table = rows("head_attribution.csv")
    assert list(table[0]) == [
        "step", "probe", "layer", "head", "mean_logit", "mean_logit_centered", "top_count", "n_examples",
        "mean_logit_diff", "n_differing", "norm",
    ]  # fmt: skip
    assert [int(row["step"]) for row in table] == [step for step in (0, 4, 6) for _ in range(4)]
    contributions = by_hand.head_contributions(model, PROBE.recipient_tokens, -1)  # [head, n, vocab]
    answer = contributions[:, torch.arange(PROBE.n_examples), PROBE.recipient_answers]
    for i, row in enumerate(table[-4:]):
        assert (int(row["layer"]), int(row["head"])) == divmod(i, 2)
        assert float(row["mean_logit"]) == pytest.approx(answer[i].mean().item(), rel=1e-4, abs=1e-5)
        centered = (answer[i] - contributions[i].mean(-1)).mean().item()
        assert float(row["mean_logit_centered"]) == pytest.approx(centered, rel=1e-4, abs=1e-5)
        assert int(row["top_count"]) == int((answer.argmax(0) == i).sum())
        assert row["norm"] == "frozen LN scale"


@pytest.mark.parametrize("kind", KINDS)
def test_patching_is_what_hooks_give(fit: Fit, rows: Rows, kind: str) -> None:
    model = fit(HeadPatchingMonitor(every_n_steps=3, full_every_n_steps=100, **WHERE), kind=kind).parts["net"]
    table = rows("head_patching.csv")
    assert list(table[0]) == [
        "step", "probe", "recipient", "donor", "ablation", "heads", "n_examples", "recipient_accuracy",
        "donor_accuracy", "other_rate", "logit_diff", "log_prob", "kl", "n_differing", "margin",
    ]  # fmt: skip
    sizes = {0: 2**4, 3: 1 + 4 + 1, 6: 2**4}  # the first and the last probe have all sets of heads
    assert {step: sum(row["step"] == str(step) for row in table) for step in sizes} == sizes
    logits = by_hand.patched_logits(model, PROBE.recipient_tokens, PROBE.donor_tokens, ())[:, -1].double()
    unpatched = logits.log_softmax(-1)
    last = [row for row in table if row["step"] == "6"]
    for row in last:
        heads = parse_head_set(row["heads"])
        logits = by_hand.patched_logits(model, PROBE.recipient_tokens, PROBE.donor_tokens, heads)[:, -1].double()
        log_q, given = logits.log_softmax(-1), logits.argmax(-1)
        own, other = (
            log_q.gather(1, answers[:, None])[:, 0] for answers in (PROBE.recipient_answers, PROBE.donor_answers)
        )
        top = logits.topk(2).values
        expected = {
            "recipient_accuracy": (given == PROBE.recipient_answers).double(),
            "donor_accuracy": (given == PROBE.donor_answers).double(),
            "other_rate": ((given != PROBE.recipient_answers) & (given != PROBE.donor_answers)).double(),
            "logit_diff": own - other,
            "log_prob": own,
            "kl": (unpatched.exp() * (unpatched - log_q)).sum(-1),
            "margin": top[:, 0] - top[:, 1],
        }
        for name, values in expected.items():
            assert float(row[name]) == pytest.approx(values.mean().item(), rel=1e-3, abs=1e-5), (row["heads"], name)
        assert (row["probe"], row["recipient"], row["donor"]) == ("copy", "recipient", "donor")
        assert row["ablation"] == "resample"
        assert int(row["n_examples"]) == int(row["n_differing"]) == PROBE.n_examples


@pytest.mark.parametrize("kind", KINDS)
def test_a_reversed_probe_says_what_the_donors_inputs_give(fit: Fit, kind: str) -> None:
    both = {**WHERE, "probes": {"copy": PROBE, "back": PROBE.reversed()}}
    paired, single = HeadPatchingMonitor(every_n_steps=3, **both), HeadPatchingMonitor(every_n_steps=3, **WHERE)
    single.name = "single"
    net = fit(paired, single, kind=kind).parts["net"]
    for name, probe in paired.probes.items():
        given = net(probe.donor_tokens)[:, -1].argmax(-1)
        expected = (given == probe.recipient_answers).double().mean().item()
        assert paired.history[name][-1].on_donor == pytest.approx(expected)
    assert all(math.isnan(scores.on_donor) for scores in single.history["copy"])
    again = HeadPatchingMonitor(**both)
    again.load_state_dict(paired.state_dict())
    assert again.history == paired.history
    older = paired.state_dict()
    older["history"] = {probe: [entry[:4] for entry in entries] for probe, entries in older["history"].items()}
    again.load_state_dict(older)
    assert all(math.isnan(scores.on_donor) for scores in again.history["copy"])


@pytest.mark.parametrize("order", [1, -1])
def test_the_verdict_is_there_from_the_first_probe_on(fit: Fit, tmp_path: Path, order: int) -> None:
    """Whichever of the two monitors comes first; also where a run goes on."""

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            there.append((tmp_path / "emergence.json").exists())
            (tmp_path / "emergence.json").unlink()

    there: list[bool] = []
    options: dict[str, Any]
    for options in ({}, {"ckpt_path": tmp_path / "checkpoints" / "last.ckpt", "max_steps": 8}):
        watch = [HeadPatchingMonitor(every_n_steps=6, **WHERE), EmergenceMonitor("copy")][::order]
        fit(
            *watch,
            Look(),
            RunCheckpoint(6),
            enable_checkpointing=True,
            datamodule=OneBatch(),
            log_every_n_steps=1,
            **options,
        )
    assert there == [True, True]


class PatchedByHand(Callback):
    """The accuracy with nothing, each head and all heads patched, step by step, through hooks alone."""

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.accuracies: dict[int, dict[tuple[Any, ...], float]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            model: Any = pl_module.parts["net"]
            heads = all_heads(model)
            sets = [(), *((head,) for head in heads), heads]
            self.accuracies[trainer.global_step] = {each: by_hand.patched_accuracy(model, PROBE, each) for each in sets}


@pytest.mark.parametrize("kind", KINDS)
def test_emergence_is_read_off_the_hooks(fit: Fit, tmp_path: Path, kind: str) -> None:
    hand = PatchedByHand(every_n_steps=5)
    monitor = EmergenceMonitor("copy", threshold=0.25)
    fit(hand, HeadPatchingMonitor(every_n_steps=5, **WHERE), monitor, kind=kind, max_steps=40, val_check_interval=10)
    verdict = json.loads((tmp_path / "emergence.json").read_text())
    steps = sorted(hand.accuracies)
    floor = 1 - PROBE.answers_differ.double().mean().item()

    def costs(step: int) -> dict[tuple[Any, ...], float]:
        left = hand.accuracies[step]
        return {s[0]: (left[()] - left[s]) / (left[()] - floor) for s in left if len(s) == 1} if left[()] >= 0.5 else {}

    costly = {step: [head for head, cost in costs(step).items() if cost >= 0.25] for step in steps}
    late = [step for step in steps if step >= 36]
    middle = {head: median(costs(step)[head] for step in late) for head in costs(late[-1])}
    order = sorted((head for head in middle if middle[head] >= 0.25), key=lambda head: -middle[head])
    assert order, "the task is too small for a head to be needed"
    assert verdict["probe"] == "copy"
    assert verdict["head"] == head_name(*order[0])
    assert verdict["word"] == ("alone" if len(order) == 1 else "one of several")
    assert verdict["other_heads"] == [head_name(*head) for head in sorted(order[1:])]
    first = next(step for step in steps if costly[step])
    assert verdict["first_cost_step"] == (first if first < 36 else None)
    exclusive = [len(costly[step]) == 1 for step in steps]
    assert verdict["crossings"] == sum(before != after for before, after in pairwise([False, *exclusive]))
    # what the module logs as val/copy_accuracy, every ten steps
    validated = monitor.accuracies["copy"]
    assert sorted(validated) == [10, 20, 30, 40]
    reached = [step for step, value in validated.items() if value >= 0.99]
    if verdict["validation_loss_of"] == "not recorded":
        assert verdict["copy_generalised_step"] == min(reached, default=None)


def test_an_old_validation_is_not_taken_for_a_new_one(fit: Fit) -> None:
    monitor = EmergenceMonitor("copy")
    fit(HeadPatchingMonitor(every_n_steps=5, **WHERE), monitor, max_steps=14, val_check_interval=10)
    assert sorted(monitor.accuracies["copy"]) == [10]


def test_the_end_of_a_fit_says_what_the_verdict_is(
    fit: Fit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In somebody else's process: our command line, which has its own summary, leaves the lines out."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "filters", [])
    monitor = EmergenceMonitor("copy")
    with caplog.at_level("INFO"):
        fit(HeadPatchingMonitor(every_n_steps=5, **WHERE), monitor, max_steps=10)
    (said,) = [record.getMessage() for record in caplog.records if "emergence.json" in record.getMessage()]
    assert said.startswith("emergence.json at step 10:") and "copy" in said
    assert said.count("\n- ") == monitor.describe(monitor.verdict()).count("- ")


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4.0 removed HookedTransformer")
def test_both_kinds_of_models_leave_the_same_tables(
    fit: Fit, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers.both_kinds import same_weights

    pair = dict(zip(("HookedTransformer", "TransformerBridge"), same_weights(**SHAPE), strict=True))
    monkeypatch.setattr("tests.helpers.copy_task.make_model", lambda kind, **shape: pair[kind])
    for kind in pair:
        watch = (HeadAttributionMonitor(every_n_steps=2, **WHERE), HeadPatchingMonitor(every_n_steps=2, **WHERE))
        # Plain gradient descent: Adam would blow rounding errors up to whole steps.
        fit(*watch, kind=kind, optimizer="SGD", lr=0.05, default_root_dir=tmp_path / kind)
    for name in ("head_attribution.csv", "head_patching.csv"):
        ours, theirs = rows(f"TransformerBridge/{name}"), rows(f"HookedTransformer/{name}")
        assert len(ours) == len(theirs) > 15
        for each, other in zip(ours, theirs, strict=True):
            assert list(each) == list(other)
            for column, value in each.items():
                if "." in value:
                    assert float(value) == pytest.approx(float(other[column]), rel=2e-3, abs=1e-4), column
                else:
                    assert value == other[column], column


def test_probes_come_from_the_datamodule_or_a_function(fit: Fit, rows: Rows, tmp_path: Path) -> None:
    where = {"every_n_steps": 3, "model_attr": "parts.net"}
    sources: list[tuple[dict[str, Any], Any, int]] = [
        ({}, CopyDataWithProbes(), 128),
        ({"probes": copy_probes}, None, 128),
        ({"probes": CopyProbes(16)}, None, 16),
        ({"probes": CopyProbes(16)}, CopyDataWithProbes(), 16),  # what is given goes before
    ]
    for i, (probes, datamodule, n) in enumerate(sources):
        watch = (HeadPatchingMonitor(**where, **probes), EmergenceMonitor("copy"))
        fit(*watch, datamodule=datamodule, default_root_dir=tmp_path / str(i))
        assert {row["n_examples"] for row in rows(f"{i}/head_patching.csv")} == {str(n)}


def patching(**changes: Any) -> HeadPatchingMonitor:
    return HeadPatchingMonitor(**{**WHERE, **changes})


def attribution(**changes: Any) -> HeadAttributionMonitor:
    return HeadAttributionMonitor(**{**WHERE, **changes})


def unknown_token() -> dict[str, Probe]:
    tokens = torch.full((4, 5), 8)
    return {"bad": Probe(tokens, tokens, torch.full((4,), 9), torch.zeros(4, dtype=torch.long))}


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        (lambda: [patching(model_attr="model")], ("HeadPatchingMonitor.model_attr", "CopyModule", "'model'")),
        (lambda: [patching(model_attr="parts")], ("probe 'copy'", "ModuleDict lacks cfg")),
        (lambda: [attribution(probes=None)], ("HeadAttributionMonitor", "probes=", "function", "datamodule")),
        (lambda: [attribution(probes={})], ("HeadAttributionMonitor.probes", "empty")),
        (lambda: [attribution(probes=[PROBE])], ("HeadAttributionMonitor.probes", "mapping of names")),
        (lambda: [attribution(probes=lambda: {"copy": 1})], ("HeadAttributionMonitor.probes", "mapping of names")),
        (lambda: [patching(probes=unknown_token)], ("probe 'bad'", "recipient_tokens", "8", "0 to 6")),
        (lambda: [attribution(), attribution()], ("two HeadAttributionMonitor", "name=")),
        (lambda: [EmergenceMonitor("copy")], ("EmergenceMonitor.patching", "HeadPatchingMonitor", "add one")),
        (lambda: [patching(), EmergenceMonitor("other")], ("EmergenceMonitor.probe", "'other'", "['copy']")),
        (
            lambda: [patching(), EmergenceMonitor("copy"), EmergenceMonitor(None)],
            ("two EmergenceMonitor", "one file", "name="),
        ),
    ],
)
def test_what_is_missing_is_named_before_training(
    fit: Fit, tmp_path: Path, callbacks: Callable[[], list[Callback]], words: tuple[str, ...]
) -> None:
    with pytest.raises(ContractError) as error:
        fit(*callbacks())
    for word in words:
        assert word in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_attributed_is_refused_before_training(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers.both_kinds import make_model

    model = make_model("TransformerBridge", **SHAPE)
    model.cfg.output_logits_soft_cap = 5.0
    monkeypatch.setattr("tests.helpers.copy_task.make_model", lambda kind, **shape: model)
    with pytest.raises(ContractError, match=r"HeadAttributionMonitor, probe 'copy': the logits are soft-capped"):
        fit(attribution())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/b", "..\\x", "a b"])
def test_a_name_that_makes_no_file_is_refused(name: str) -> None:
    for make in (patching, attribution, lambda name: EmergenceMonitor("copy", name=name)):
        with pytest.raises(ValueError, match=r"Monitor\.name: .* is no plain name"):
            make(name=name)


def test_nothing_is_overwritten(fit: Fit, tmp_path: Path) -> None:
    for file, watch in {
        "loss_spikes.csv": [LossSpikeMonitor()],
        "emergence_b.json": [patching(name="a"), EmergenceMonitor("copy", patching="a", name="b")],
        "head_attribution.csv": [attribution()],
    }.items():
        (tmp_path / file).write_text("step\n5\n")
        with pytest.raises(ContractError, match="nothing is overwritten"):
            fit(*watch)
        assert (tmp_path / file).read_text() == "step\n5\n"


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_torchs_threads_are_left_as_they_are(tmp_path: Path, kind: str, n_layers: int) -> None:
    """Somebody else's training step keeps PyTorch's own threads, and so does a probe that runs the whole model."""
    in_steps, in_probes = set(), set()

    class Module(CopyModule):
        def __init__(self) -> None:
            super().__init__(kind)
            self.parts["net"] = make_model(kind, **SHAPE, n_layers=n_layers)

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            in_steps.add(torch.get_num_threads())
            return super().training_step(batch, batch_idx)

    class Monitor(HeadPatchingMonitor):
        def measure(self, *args: Any, **kwargs: Any) -> Any:
            in_probes.add(torch.get_num_threads())
            return super().measure(*args, **kwargs)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        train(tmp_path, Monitor(every_n_steps=2, **WHERE), module=Module())
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert in_steps == {3} and after == 3
    assert in_probes == {1 if n_layers == 1 and kind == "HookedTransformer" else 3}
