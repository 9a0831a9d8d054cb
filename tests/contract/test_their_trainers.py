"""However somebody else trains: the monitors see each step once, and the weights and the precision that count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from lit_backdoor.callbacks import (
    ContractError,
    EmergenceMonitor,
    HeadAttributionMonitor,
    HeadPatchingMonitor,
    ProgressMeasureMonitor,
    Recorder,
    RunCheckpoint,
    WeightCheckpoint,
)
from lit_backdoor.callbacks.clamp import HeadClamp
from lit_backdoor.runs.weights import kept_weights, load_weights
from tests.helpers.both_kinds import HAS_HOOKED_TRANSFORMER, make_model
from tests.helpers.copy_task import SHAPE, CopyData, CopyModule, OneBatch, copy_probes
from tests.helpers.runs import read_rows

from .conftest import Fit, Rows

WHERE: dict[str, Any] = {"probes": copy_probes(32), "model_attr": "parts.net"}
PROBE = WHERE["probes"]["copy"]


def steps_of(table: list[dict[str, str]]) -> list[int]:
    return list(dict.fromkeys(int(row["step"]) for row in table))


def unpatched(table: list[dict[str, str]]) -> dict[int, float]:
    """The log probability of the recipient's answers with nothing patched, by step."""
    return {int(row["step"]): float(row["log_prob"]) for row in table if row["heads"] == "none"}


def log_prob(model: Any) -> float:
    with torch.no_grad():
        logits = model(PROBE.recipient_tokens)[:, -1].double()
    return logits.log_softmax(-1).gather(1, PROBE.recipient_answers[:, None]).mean().item()


class ThreeOptimizers(CopyModule):
    """As in adversarial training: three optimizers make a step with each batch, so every third step is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.01) for _ in range(3)]


def test_several_optimizers_miss_no_probe(fit: Fit, rows: Rows, tmp_path: Path) -> None:
    watch = [
        HeadPatchingMonitor(every_n_steps=4, full_every_n_steps=8, **WHERE),
        WeightCheckpoint(every_n_steps=4, model_attr="parts.net"),
        RunCheckpoint(every_n_steps=10, keep_every_n_steps=10),
    ]
    options = {"max_steps": 27, "enable_checkpointing": True, "datamodule": OneBatch(), "log_every_n_steps": 1}
    fit(*watch, **options, module=ThreeOptimizers())
    table = rows("head_patching.csv")
    assert steps_of(table) == [0, 6, 9, 12, 18, 21, 24, 27]  # 4, 8, 12, 16, 20, 24: the first that are seen
    full = [step for step in steps_of(table) if sum(row["step"] == str(step) for row in table) == 16]
    assert full == [0, 9, 18, 24, 27]
    assert list(kept_weights(tmp_path)) == [0, 6, 9, 12, 18, 21, 24, 27]
    kept = sorted((tmp_path / "checkpoints").glob("step_*.ckpt"))
    assert [path.stem for path in kept] == ["step_000012", "step_000021"]
    before = (tmp_path / "head_patching.csv").read_bytes()
    fit(*watch, **options, module=ThreeOptimizers(), ckpt_path=kept[0])
    assert (tmp_path / "head_patching.csv").read_bytes() == before


def test_accumulation_that_ends_in_the_middle(fit: Fit, rows: Rows, tmp_path: Path) -> None:
    """40 batches of an epoch make 14 steps: the last one of a single batch, and the next epoch's begin anew."""
    options = {"accumulate_grad_batches": 3, "max_steps": -1, "max_epochs": 2, "limit_train_batches": 7}
    watched = fit(
        HeadPatchingMonitor(every_n_steps=2, **WHERE), HeadAttributionMonitor(every_n_steps=1, **WHERE), **options
    )
    bare = fit(default_root_dir=tmp_path / "bare", **options)
    assert steps_of(rows("head_patching.csv")) == [0, 2, 4, 6]
    assert steps_of(rows("head_attribution.csv")) == list(range(7))
    assert len(rows("head_attribution.csv")) == 7 * 4
    for each, other in zip(watched.parameters(), bare.parameters(), strict=True):
        assert torch.equal(each, other)
    assert unpatched(rows("head_patching.csv"))[6] == pytest.approx(log_prob(watched.parts["net"]))


class Validated(CopyModule):
    """Notes the log probability in every validation, by step."""

    def __init__(self, optimizer: str = "Adam") -> None:
        super().__init__(optimizer=optimizer)
        self.seen: dict[int, float] = {}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.seen[self.global_step] = log_prob(self.parts["net"])


@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_measured_where_they_are_validated(
    fit: Fit, rows: Rows, tmp_path: Path, first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    module, averaging = Validated(), EMAWeightAveraging(decay=0.5)
    watch = [HeadPatchingMonitor(every_n_steps=3, **WHERE), WeightCheckpoint(every_n_steps=3, model_attr="parts.net")]
    options = {"max_steps": 9, "val_check_interval": 3, "num_sanity_val_steps": 0}
    callbacks = [averaging, *watch] if first else [*watch, averaging]
    fit(*callbacks, **options, module=module, enable_checkpointing=True)
    assert "Monitors measure the weights that EMAWeightAveraging averages, as validation does" in caplog.text
    found = unpatched(rows("head_patching.csv"))
    assert list(module.seen) == [3, 6, 9] and list(found) == [0, 3, 6, 9]
    for step, value in module.seen.items():
        assert found[step] == pytest.approx(value)
        load_weights(model := make_model("TransformerBridge", **SHAPE), kept_weights(tmp_path)[step])
        assert log_prob(model) == pytest.approx(value)
    without = fit(EMAWeightAveraging(decay=0.5), **options, default_root_dir=tmp_path / "bare")
    raw = fit(HeadPatchingMonitor(every_n_steps=3, **WHERE), max_steps=9, default_root_dir=tmp_path / "raw")
    for each, other in zip(module.parameters(), without.parameters(), strict=True):
        assert torch.equal(each, other)
    assert log_prob(raw.parts["net"]) != pytest.approx(found[9], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
def test_probes_run_in_the_precision_that_is_validated(fit: Fit, rows: Rows, precision: Any) -> None:
    module = Validated("SGD")
    watch = (
        HeadPatchingMonitor(every_n_steps=3, **WHERE),
        HeadAttributionMonitor(every_n_steps=3, **WHERE),
        EmergenceMonitor("copy"),
    )
    options = {"max_steps": 6, "val_check_interval": 3, "num_sanity_val_steps": 0}
    fit(*watch, module=module, precision=precision, **options)
    found = unpatched(rows("head_patching.csv"))
    assert list(module.seen) == [3, 6]
    for step, value in module.seen.items():
        assert found[step] == pytest.approx(value, rel=1e-6)
    assert found[6] != pytest.approx(log_prob(module.parts["net"].float()), rel=2e-6)
    assert len(rows("head_attribution.csv")) == 3 * 4
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="TransformerLens 4.0 removed HookedTransformer")
def test_a_model_that_does_not_know_its_precision_is_named(fit: Fit) -> None:
    """Lightning converts the weights, and HookedTransformer does not notice: not even its own training step works."""
    with pytest.raises(ContractError, match=r"weights of HookedTransformer are torch.bfloat16, .*dtype=torch.bfloat16"):
        fit(HeadPatchingMonitor(**WHERE), kind="HookedTransformer", precision="bf16-true", num_sanity_val_steps=0)


def test_a_second_fit_of_one_trainer_is_the_same_run(tmp_path: Path) -> None:
    def watch() -> list[Any]:
        return [
            HeadPatchingMonitor(every_n_steps=4, **WHERE),
            EmergenceMonitor("copy"),
            WeightCheckpoint(every_n_steps=4, model_attr="parts.net"),
            RunCheckpoint(every_n_steps=4),
        ]

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(**quiet, max_steps=6, callbacks=watch(), default_root_dir=tmp_path / "twice")
    torch.manual_seed(0)
    module, data = CopyModule(), CopyData()
    trainer.fit(module, data)
    trainer.fit(module, data)  # the cell is run again: nothing is left to do
    trainer.fit_loop.epoch_loop.max_steps = 10
    trainer.fit(module, data)
    assert steps_of(read_rows(tmp_path / "twice" / "head_patching.csv")) == [0, 4, 8, 10]
    assert list(kept_weights(tmp_path / "twice")) == [0, 4, 6, 8, 10]


def test_monitors_that_are_used_again_begin_anew(fit: Fit, tmp_path: Path) -> None:
    """A notebook's cell that makes a Trainer, of monitors that another cell has made, is run twice."""
    patching = HeadPatchingMonitor(every_n_steps=2, **WHERE)
    first = EmergenceMonitor("copy", name="first")
    fit(patching, first, default_root_dir=tmp_path / "1")
    verdict = (tmp_path / "1" / "emergence_first.json").read_bytes()
    (tmp_path / "1" / "emergence_first.json").unlink()
    fit(patching, EmergenceMonitor("copy", name="second"), default_root_dir=tmp_path / "2")
    assert not (tmp_path / "1" / "emergence_first.json").exists()  # nobody writes there any more
    assert (tmp_path / "2" / "emergence_second.json").read_bytes() == verdict
    tables = [(tmp_path / folder / "head_patching.csv").read_bytes() for folder in "12"]
    assert tables[0] == tables[1]


def test_a_dotted_name_will_do_wherever_a_function_is_asked_for(fit: Fit, rows: Rows) -> None:
    """As Hydra hands it over: a text."""
    fit(HeadPatchingMonitor(probes="tests.helpers.copy_task.copy_probes", model_attr="parts.net"))  # type: ignore[arg-type]
    assert {row["n_examples"] for row in rows("head_patching.csv")} == {"128"}
    for make in (
        lambda name: HeadPatchingMonitor(probes=name),
        lambda name: ProgressMeasureMonitor(rules=name),
        lambda name: HeadClamp("L0H0", "donor", donor_tokens=name),
        lambda name: Recorder([], "nowhere", probes=name),
    ):
        for name in ("tests.helpers.copy_task.no_such", "no_such_module.probes", "no such name"):
            with pytest.raises(ContractError, match=rf"^\w+\.\w+: '{name}' can't be imported: "):
                make(name)
