"""Models as other people have them: compiled, in half precision, with tied embeddings and with hooks of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_backdoor.callbacks import HeadAttributionMonitor, HeadPatchingMonitor, WeightCheckpoint
from lit_backdoor.functional import attribute_heads, compare_attention, patch_heads, why_no_shortcut
from lit_backdoor.functional.hooked_model import carries_hooks
from lit_backdoor.runs.weights import kept_weights, load_weights
from tests.helpers import by_hand
from tests.helpers.both_kinds import KINDS, VOCAB, make_model, randomize
from tests.helpers.copy_task import SHAPE, CopyModule, copy_probes

from .conftest import Fit, Rows
from .test_own_model import OwnModel

PROBE = copy_probes(32)["copy"]
SETS = ["none", "L0H0", "L1H1", "L0H0+L1H0"]
WHERE: dict[str, Any] = {"probes": {"copy": PROBE}, "model_attr": "parts.net", "every_n_steps": 2}


def measured(model: Any) -> tuple[Any, ...]:
    return patch_heads(model, PROBE, SETS), attribute_heads(model, PROBE), compare_attention(model, PROBE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_compiled_in_place_is_measured_uncompiled(kind: str, untouched: Any) -> None:
    """A compiled module passes hooks by that came after its first call, or can't be compiled with them."""
    model = randomize(make_model(kind, **SHAPE))
    expected = measured(model)
    model.compile(backend="eager")
    for block in model.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        logits = model(PROBE.recipient_tokens)
    unchanged = untouched(model)
    assert measured(model) == expected
    unchanged()
    with torch.no_grad():
        assert torch.equal(model(PROBE.recipient_tokens), logits)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own, as it traces
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")  # TransformerLens 4
def test_a_compiled_model_trains_as_if_nobody_looked(fit: Fit, rows: Rows, tmp_path: Path) -> None:
    def compiled() -> CopyModule:
        torch.manual_seed(0)
        module = CopyModule()
        module.parts["net"].compile(backend="eager")
        return module

    watched = fit(HeadPatchingMonitor(**WHERE), module=compiled())
    bare = fit(module=compiled(), default_root_dir=tmp_path / "bare")
    for each, other in zip(watched.parameters(), bare.parameters(), strict=True):
        assert torch.equal(each, other)
    last = {row["heads"]: float(row["recipient_accuracy"]) for row in rows("head_patching.csv") if row["step"] == "6"}
    plain = make_model(KINDS[0], **SHAPE)
    plain.load_state_dict(watched.parts["net"].state_dict())
    for heads, value in last.items():
        assert [value] == [result.recipient_accuracy for result in patch_heads(plain, PROBE, [heads])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [{"n_layers": 1}, SHAPE], ids=["one layer", "layer norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_half_precision(kind: str, shape: dict[str, Any], dtype: torch.dtype) -> None:
    """Patching gives what hooks give, in the model's own bits; attribution what float32 gives, up to rounding."""
    full = randomize(make_model(kind, **shape))
    half = randomize(make_model(kind, **shape, dtype=dtype).to(dtype))
    assert half.W_U.dtype == dtype and why_no_shortcut(half) is not None
    (result,) = patch_heads(half, PROBE, ["L0H1"])
    logits = by_hand.patched_logits(half, PROBE.recipient_tokens, PROBE.donor_tokens, [(0, 1)])[:, -1].double()
    by_hooks = logits.log_softmax(-1).gather(1, PROBE.recipient_answers[:, None]).mean().item()
    assert result.log_prob == pytest.approx(by_hooks, rel=1e-6)
    for ours, theirs in zip(attribute_heads(half, PROBE), attribute_heads(full, PROBE), strict=True):
        assert ours.mean_logit == pytest.approx(theirs.mean_logit, rel=0.01, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_it_is_the_models_own_pass(kind: str) -> None:
    model = randomize(make_model(kind, n_layers=1))
    plain = patch_heads(model, PROBE, ["none"])[0].log_prob
    with torch.autocast("cpu", torch.bfloat16):
        (result,) = patch_heads(model, PROBE, ["none"])
        with torch.no_grad():
            logits = model(PROBE.recipient_tokens)[:, -1].double()
        attributed = attribute_heads(model, PROBE)
    own = logits.log_softmax(-1).gather(1, PROBE.recipient_answers[:, None]).mean().item()
    assert result.log_prob == own != plain
    for ours, theirs in zip(attributed, attribute_heads(model, PROBE), strict=True):
        assert ours.mean_logit == pytest.approx(theirs.mean_logit, rel=0.02, abs=0.01)


class Tied(OwnModel):
    """The unembedding is the embedding."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name != "W_U":
            super().register_parameter(name, param)

    @property
    def W_U(self) -> Tensor:  # type: ignore[override]
        return self.W_E.T


def tied(kind: str) -> Any:
    """A model whose embedding and unembedding are one piece of memory."""
    if kind == "own":
        return Tied(2)
    model = make_model(kind, **SHAPE)
    if kind == "HookedTransformer":
        model.unembed.W_U = nn.Parameter(model.embed.W_E.data.T)
    else:
        embed, unembed = model.embed.original_component, model.unembed.original_component
        unembed.weight = embed.weight
    assert model.W_U.shape == (SHAPE.get("d_model", 12), VOCAB)
    assert model.W_U.data_ptr() == model.W_E.data_ptr()
    return model


@pytest.mark.parametrize("kind", [*KINDS, "own"])
def test_tied_embeddings(fit: Fit, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("tests.helpers.copy_task.make_model", lambda *_, **__: tied(kind))
    watch = [HeadPatchingMonitor(**WHERE), HeadAttributionMonitor(**WHERE)]
    keep = WeightCheckpoint(every_n_steps=3, model_attr="parts.net")
    model = fit(*watch, keep, enable_checkpointing=True).parts["net"]
    last = {row["heads"]: float(row["log_prob"]) for row in rows("head_patching.csv") if row["step"] == "6"}
    assert last["none"] == pytest.approx(patch_heads(model, PROBE, ["none"])[0].log_prob)
    with torch.no_grad():
        logits = model(PROBE.recipient_tokens)
        again = tied(kind)
        load_weights(again, kept_weights(tmp_path)[6])
        assert torch.equal(again(PROBE.recipient_tokens), logits)


@pytest.mark.parametrize("permanent", [True, False])
@pytest.mark.parametrize("first", ["hook", "probe"])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_theirs_stay_before_and_after_a_probe(kind: str, first: str, permanent: bool) -> None:
    """Whether they came before the model's first pass or after a probe: they act, in the probe too, and stay."""
    model, plain = (randomize(make_model(kind, **SHAPE)) for _ in range(2))
    seen: list[int] = []

    def double(activation: Tensor, hook: Any) -> Tensor:
        seen.append(len(activation))
        return 2 * activation

    if first == "probe":
        assert patch_heads(model, PROBE, SETS) == patch_heads(plain, PROBE, SETS)
    model.add_hook("blocks.1.hook_resid_pre", double, is_permanent=permanent)
    for _ in range(2):
        results = patch_heads(model, PROBE, SETS)
        assert seen and carries_hooks(model)
        for heads, result in zip([[], [(0, 0)], [(1, 1)], [(0, 0), (1, 0)]], results, strict=True):
            logits = by_hand.patched_logits(model, PROBE.recipient_tokens, PROBE.donor_tokens, heads)[:, -1].double()
            by_hooks = logits.log_softmax(-1).gather(1, PROBE.recipient_answers[:, None]).mean().item()
            assert result.log_prob == pytest.approx(by_hooks, rel=1e-5)
    assert results != patch_heads(plain, PROBE, SETS)
    seen.clear()
    with torch.no_grad():
        model(PROBE.recipient_tokens)
    assert seen == [PROBE.n_examples]
    model.reset_hooks(including_permanent=True)
    assert patch_heads(model, PROBE, SETS) == patch_heads(plain, PROBE, SETS)
