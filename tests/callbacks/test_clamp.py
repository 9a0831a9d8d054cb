"""HeadClamp in our own runs and in somebody else's LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_backdoor.callbacks import ContractError, HeadClamp, HeadPatchingMonitor
from lit_backdoor.datamodule import BackdoorDataModule
from lit_backdoor.functional import Probe
from lit_backdoor.functional.clamp import head_parameters
from lit_backdoor.functional.heads import Head
from lit_backdoor.module import BackdoorModule
from tests.helpers.both_kinds import KINDS, VOCAB, make_model
from tests.helpers.copy_task import CopyData, CopyModule, copy_probes, train
from tests.helpers.runs import read_rows

QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}
SGD: dict[str, Any] = {"optimizer": "SGD", "lr": 0.1}
"""Adam makes whole steps of gradients that are nothing but rounding."""
NET: dict[str, Any] = {"model_attr": "parts.net"}


def train_backdoor(folder: Path, *callbacks: Callback, max_steps: int = 6, **options: Any) -> BackdoorModule:
    """The tiny task of this file, for some steps."""
    torch.manual_seed(0)
    module = BackdoorModule(moduli=[7, 1], n_heads=2, d_model=16, d_mlp=16, lr=1e-2, **options)
    trainer = Trainer(
        callbacks=list(callbacks), default_root_dir=folder, accelerator="cpu", max_steps=max_steps, max_epochs=-1,
        limit_val_batches=0, log_every_n_steps=1, **QUIET,
    )  # fmt: skip
    trainer.fit(module, BackdoorDataModule(moduli=[7, 1]))
    assert "training_step" not in vars(module) and "validation_step" not in vars(module)
    return module


def assert_same_model(each: torch.nn.Module, other: torch.nn.Module) -> None:
    for parameter, same in zip(each.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, same)


def test_before_and_after_its_time_it_changes_no_bit(tmp_path: Path) -> None:
    bare = train_backdoor(tmp_path)
    assert_same_model(bare, train_backdoor(tmp_path, HeadClamp("L0H1", from_step=6, hold=True)))
    with pytest.raises(AssertionError):
        assert_same_model(bare, train_backdoor(tmp_path, HeadClamp("L0H1", from_step=5)))


@pytest.mark.parametrize("kind", KINDS)
def test_it_changes_no_bit_of_somebody_elses_module_before_its_time(kind: str, tmp_path: Path) -> None:
    bare = train(tmp_path, kind=kind)
    assert_same_model(bare, train(tmp_path, HeadClamp("L1H0", from_step=6, **NET), kind=kind))
    with pytest.raises(AssertionError):
        assert_same_model(bare, train(tmp_path, HeadClamp("L1H0", from_step=5, **NET), kind=kind))


@pytest.mark.parametrize("mode", ["zero", "mean", "donor"])
def test_the_folded_form_trains_like_the_hooks(mode: Any, tmp_path: Path) -> None:
    modules = [
        train_backdoor(tmp_path, HeadClamp("L0H1", mode, from_step=2, hold=True), last_position=last_position)
        for last_position in (True, False)
    ]
    for each, other in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(each, other, rtol=1e-3, atol=1e-5)


def seeded_module() -> CopyModule:
    torch.manual_seed(0)
    return CopyModule(KINDS[-1], **SGD)


def by_hand(folder: Path, steps: int, share: Callable[[int], float], **options: Any) -> CopyModule:
    """The same training as `train`, with the second layer's first head scaled by a hook of this test's own."""

    class Scaled(CopyModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            def scale(z: Any, hook: Any) -> Any:
                return torch.cat([z[:, :, :1] * (1 - share(self.global_step)), z[:, :, 1:]], dim=2)

            net: Any = self.parts["net"]
            with net.hooks(fwd_hooks=[("blocks.1.attn.hook_z", scale)]):
                return super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    return train(folder, module=Scaled(KINDS[-1], **SGD), max_steps=steps, **options)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_two_layers_with_layer_norm_against_a_hook_by_hand(precision: Any, tmp_path: Path) -> None:
    clamp = HeadClamp("L1H0", from_step=1, until_step=5, strength=0.8, ramp_steps=2, **NET)
    shares = [0, 0, 0.4, 0.8, 0.8, 0]
    assert [clamp.share(step) for step in range(6)] == shares
    module = train(tmp_path, clamp, module=seeded_module(), precision=precision)
    if precision == "32-true":
        expected = by_hand(tmp_path, 6, lambda step: shares[step])
        for each, other in zip(module.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(each, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_same_model(module, train(tmp_path, module=seeded_module(), precision=precision))


def test_bf16_mixed_against_a_hook_by_hand(tmp_path: Path) -> None:
    """A whole clamp replaces by exact zeros, which bf16 has too: the training is the same to the bit."""
    precision: dict[str, Any] = {"precision": "bf16-mixed"}
    module = train(tmp_path, HeadClamp("L1H0", from_step=2, **NET), module=seeded_module(), **precision)
    assert_same_model(module, by_hand(tmp_path, 6, lambda step: float(step >= 2), **precision))
    with pytest.raises(AssertionError):
        assert_same_model(module, by_hand(tmp_path, 6, lambda step: float(step >= 3), **precision))


def test_all_heads_clamped_from_the_start_train_the_direct_path_alone(tmp_path: Path) -> None:
    trained = train_backdoor(tmp_path, HeadClamp("L0H0+L0H1"))
    torch.manual_seed(0)
    module = BackdoorModule(moduli=[7, 1], n_heads=2, d_model=16, d_mlp=16, lr=1e-2)
    model, batch = module.model, BackdoorDataModule(moduli=[7, 1]).train_examples
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=1e-2, weight_decay=1.0, betas=(0.9, 0.98),
    )  # fmt: skip
    mlp = model.blocks[0].mlp
    for _ in range(6):
        resid = model.W_E[batch.tokens[:, -1]] + model.W_pos[-1]
        logits = (resid + (resid @ mlp.W_in).relu() @ mlp.W_out) @ model.W_U
        for parameter in model.parameters():  # of the heads too, which weight decay shrinks
            parameter.grad = torch.zeros_like(parameter)
        torch.nn.functional.cross_entropy(logits.double(), batch.answers).backward()
        optimizer.step()
    for (name, each), other in zip(trained.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(each, other, rtol=1e-4, atol=1e-5, msg=name)


class KeepParameters(Callback):
    """The parameters of head L0H1, and all others, after every step; first in the list, before any other callback."""

    def __init__(self) -> None:
        self.clamped: list[list[torch.Tensor]] = []
        self.other: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        model: Any = pl_module.model
        self.clamped.append([view.clone() for view in head_parameters(model, (Head(0, 1),))])
        self.other.append(model.W_O[0, 0].detach().clone())


@pytest.mark.parametrize("options", [{"mode": "freeze"}, {"mode": "zero", "hold": True}, {"mode": "zero"}])
def test_parameters_are_kept_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    keep = KeepParameters()
    train_backdoor(tmp_path, keep, HeadClamp("L0H1", from_step=2, until_step=5, **options), max_steps=7)
    moved = [
        any(not torch.equal(before, after) for before, after in zip(*pair, strict=True))
        for pair in zip(keep.clamped, keep.clamped[1:], strict=False)
    ]
    holds = options != {"mode": "zero"}
    assert moved == [True, not holds, not holds, not holds, True, True]
    assert all(not torch.equal(a, b) for a, b in zip(keep.other, keep.other[1:], strict=False))


@pytest.mark.parametrize("mode, ablation", [("donor", "resample"), ("zero", "zero")])
def test_as_it_begins_the_clamped_accuracy_is_the_cell_of_the_patching_table(
    mode: Any, ablation: Any, tmp_path: Path
) -> None:
    plain = HeadPatchingMonitor(every_n_steps=1, ablations=[ablation])
    with_clamp = HeadPatchingMonitor(every_n_steps=1, ablations=[ablation], clamped=True, name="clamped")
    train_backdoor(tmp_path, plain, with_clamp, HeadClamp("L0H1", mode, from_step=8), max_steps=9)
    tables = [read_rows(tmp_path / f"head_patching{name}.csv") for name in ("", "_clamped")]

    def cell(table: list[dict[str, str]], step: int, heads: str) -> float:
        (row,) = (r for r in table if (r["step"], r["probe"], r["heads"]) == (str(step), "backdoor", heads))
        return float(row["log_prob"])

    without, clamped = tables
    assert cell(clamped, 8, "none") == pytest.approx(cell(without, 8, "L0H1"), abs=1e-5)
    assert cell(clamped, 8, "L0H1") == pytest.approx(cell(clamped, 8, "none"), abs=1e-5)
    assert cell(clamped, 8, "none") != pytest.approx(cell(without, 8, "none"), abs=1e-3)
    assert cell(clamped, 7, "L0H0") == pytest.approx(cell(without, 7, "L0H0"), abs=1e-5)


@pytest.mark.parametrize("mode", ["zero", "donor", "mean"])
def test_probes_of_several_lengths_are_measured_clamped_but_for_a_mean(mode: Any, tmp_path: Path) -> None:
    (long,) = copy_probes().values()
    answers = (long.recipient_answers, long.donor_answers)
    probes = {"long": long, "short": Probe(long.recipient_tokens[:, :4], long.donor_tokens[:, :4], *answers)}
    net = make_model(KINDS[0], n_layers=1, normalization_type="LN")
    module = CopyModule(KINDS[0])
    module.parts["net"] = net
    clamp = HeadClamp("L0H1", mode, donor_tokens=by_one if mode == "donor" else None, **NET)
    monitor = HeadPatchingMonitor(clamped=True, probes=probes, **NET)
    if mode == "mean":
        with pytest.raises(ContractError, match=r"HeadPatchingMonitor\.clamped: .*lengths differ \(4, 5 tokens\)"):
            train(tmp_path, clamp, monitor, module=module, max_steps=1)
        assert not list(tmp_path.iterdir())
    else:
        train(tmp_path, clamp, monitor, module=module, max_steps=1)
        assert {row["probe"] for row in read_rows(tmp_path / "head_patching.csv")} == {"long", "short"}


def by_one(tokens: torch.Tensor) -> torch.Tensor:
    """Donors of other tokens."""
    return (tokens + 1) % VOCAB


class ValidationLoss(BackdoorModule):
    """Remembers whether its validation passes are clamped."""

    clamped: set[bool]

    def validation_step(self, *args: Any) -> None:
        self.clamped.add(bool(self.model.hook_dict["blocks.0.attn.hook_z"].fwd_hooks))
        super().validation_step(*args)


@pytest.mark.parametrize("validation", [True, False])
def test_validation_has_it_if_asked(validation: bool, tmp_path: Path) -> None:
    module = ValidationLoss(moduli=[7, 1], n_heads=2, d_model=8, d_mlp=8)
    module.clamped = set()
    options: dict[str, Any] = {"max_steps": 2, "max_epochs": -1, "val_check_interval": 1, "num_sanity_val_steps": 0}
    clamp = HeadClamp("L0H1", "donor", validation=validation)
    trainer = Trainer(callbacks=[clamp], default_root_dir=tmp_path, accelerator="cpu", **options, **QUIET)
    trainer.fit(module, BackdoorDataModule(moduli=[7, 1]))
    assert module.clamped == {validation}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heads": "L0H9"}, "HeadClamp.heads: L0H9 does not exist; the model has L0H0, L0H1"),
        ({"mode": "donor"}, "HeadClamp.donor_tokens: nobody says who the donor"),
        ({"mode": "donor", "donor_tokens": lambda tokens: tokens[:, 0]}, "HeadClamp.mode: donor is not possible"),
        ({"model_attr": "net"}, "HeadClamp.model_attr"),
    ],
)
def test_what_would_not_act_is_refused_before_training(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=words):
        train(tmp_path, HeadClamp(**{"heads": "L0H1", **NET, **options}))
    assert not list(tmp_path.iterdir())


def test_a_head_without_parameters_of_its_own_is_not_frozen(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"freeze is not possible: blocks\.0\.attn\.W_Q of TransformerBridge"):
        train(tmp_path, HeadClamp("L0H1", "freeze", **NET), kind="TransformerBridge")


@pytest.mark.parametrize("what", ["model", "attention", "wrapper"])
def test_a_compiled_model_is_refused(what: str, tmp_path: Path) -> None:
    module = CopyModule(KINDS[0])
    if what == "wrapper":
        module.fast = torch.compile(module.parts["net"], backend="eager")  # type: ignore[assignment]
    else:
        net: Any = module.parts["net"]
        part = net if what == "model" else net.blocks[0].attn
        part.compile(backend="eager")
    with pytest.raises(ContractError, match="is compiled, and passes hooks by"):
        train(tmp_path, HeadClamp("L0H1", **NET), module=module)


class PassesBy(CopyModule):
    """Trains another model than the one that it shows."""

    def __init__(self) -> None:
        super().__init__(KINDS[0])
        self.other = CopyModule(KINDS[0])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.other.training_step(batch, batch_idx)


def test_a_training_step_that_passes_the_hooks_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"training_step of PassesBy passes the hooks of parts\.net by"):
        train(tmp_path, HeadClamp("L0H1", **NET), module=PassesBy())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"from_step": 5, "until_step": 5}, "HeadClamp.until_step: 5 is not after from_step, which is 5"),
        ({"heads": "none"}, "HeadClamp.heads: none is given"),
        ({"heads": "second"}, "HeadClamp.heads: 'second' is not a set of heads"),
        ({"mode": "one"}, "HeadClamp.mode: 'one' is not allowed; allowed: zero, mean, donor, freeze"),
        ({"strength": 1.5}, "HeadClamp.strength: 1.5 is not allowed"),
        ({"mode": "freeze", "strength": 0.5}, "HeadClamp.mode: freeze replaces nothing"),
        ({"mode": "zero", "donor_tokens": abs}, "HeadClamp.donor_tokens: the mode zero has no donor"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HeadClamp(**{"heads": "L0H0", **options})


def test_two_clamps_and_monitors_without_one(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="name all heads in one"):
        train(tmp_path, HeadClamp("L0H1", **NET), HeadClamp("L0H0", **NET))
    monitor = HeadPatchingMonitor(clamped=True, probes=copy_probes(), **NET)
    with pytest.raises(ContractError, match=r"HeadPatchingMonitor.clamped: no HeadClamp"):
        train(tmp_path, monitor)
    donor = HeadClamp("L0H1", "donor", donor_tokens=lambda tokens: tokens.flip(1), **NET)
    with pytest.raises(ContractError, match="a patch would change the donor"):
        train(tmp_path, monitor, donor, datamodule=CopyData())
