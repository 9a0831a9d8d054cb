"""Somebody else's model: no TransformerLens in it, only the members of `HookedModel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_backdoor.callbacks import EmergenceMonitor, HeadAttributionMonitor, HeadPatchingMonitor
from lit_backdoor.functional import HookedModel, Probe, attribute_heads, logit_parts, patch_heads, why_no_shortcut
from tests.helpers.both_kinds import VOCAB
from tests.helpers.copy_task import copy_probes

from .conftest import Fit, Rows


class OwnModel(nn.Module):
    """Heads that look at fixed positions, in `n_layers` layers without an MLP."""

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.cfg = SimpleNamespace(
            n_layers=n_layers, n_heads=2, d_vocab=VOCAB, n_ctx=5, normalization_type=None, attn_only=True
        )
        self.W_E = nn.Parameter(torch.randn(VOCAB, 8))
        self.W_V = nn.Parameter(torch.randn(n_layers, 2, 8, 3))
        self.W_O = nn.Parameter(torch.randn(n_layers, 2, 3, 8))
        self.W_U = nn.Parameter(torch.randn(8, VOCAB))

    def forward(self, tokens: Tensor, at: Callable[[str, Tensor], Tensor] = lambda name, value: value) -> Tensor:
        resid = at("blocks.0.hook_resid_pre", at("hook_embed", self.W_E[tokens]))
        for layer in range(self.cfg.n_layers):
            v = torch.einsum("npm,hmd->nphd", resid, self.W_V[layer])
            z = at(f"blocks.{layer}.attn.hook_z", torch.stack([v[:, :1, 0].expand_as(v[:, :, 0]), v[:, :, 1]], dim=2))
            resid = resid + torch.einsum("nphd,hdm->npm", z, self.W_O[layer])
        return resid @ self.W_U

    def run_with_cache(self, tokens: Tensor, names_filter: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        cache: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            if name in names_filter:
                cache[name] = value
            return value

        return self(tokens, keep), cache

    def run_with_hooks(self, tokens: Tensor, fwd_hooks: Sequence[tuple[str, Any]]) -> Tensor:
        hooks = dict(fwd_hooks)

        def replace(name: str, value: Tensor) -> Tensor:
            replaced = hooks[name](value, hook=name) if name in hooks else None
            return value if replaced is None else replaced

        return self(tokens, replace)


class Wrapped:
    """Not even a Module."""

    def __init__(self, model: OwnModel) -> None:
        self.cfg, self.W_O, self.W_U = model.cfg, model.W_O, model.W_U
        self.run_with_cache, self.run_with_hooks = model.run_with_cache, model.run_with_hooks


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped])
def test_the_functions_need_nothing_else(n_layers: int, wrap: Callable[[OwnModel], HookedModel]) -> None:
    torch.manual_seed(0)
    model = OwnModel(n_layers)
    probe: Probe = copy_probes()["copy"]
    hooked = wrap(model)
    assert isinstance(hooked, HookedModel)
    probe.check(hooked)
    assert why_no_shortcut(hooked) is not None
    parts = logit_parts(hooked, probe)
    with torch.no_grad():
        logits = model(probe.recipient_tokens)[:, -1]
        donor_first = torch.cat([probe.donor_tokens[:, :1], probe.recipient_tokens[:, 1:]], dim=1)
        patched = model(donor_first)[:, -1]
    own = logits.gather(1, probe.recipient_answers[:, None])[:, 0]
    torch.testing.assert_close(parts.values.sum(0), own, rtol=1e-4, atol=1e-4)
    assert sum(each.top_count for each in attribute_heads(hooked, probe)) == probe.n_examples
    # the first heads alone read the first token, the only one that differs
    (result,) = patch_heads(hooked, probe, [[(layer, 0) for layer in range(n_layers)]])
    log_q = patched.log_softmax(-1).gather(1, probe.recipient_answers[:, None]).mean().item()
    assert result.log_prob == pytest.approx(log_q, rel=1e-3)


def test_the_callbacks_need_nothing_else(fit: Fit, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("tests.helpers.copy_task.make_model", lambda kind, **shape: OwnModel(2))
    where: dict[str, Any] = {"probes": copy_probes, "model_attr": "parts.net", "every_n_steps": 3}
    fit(HeadAttributionMonitor(**where), HeadPatchingMonitor(**where), EmergenceMonitor("copy"))
    for name in ("head_attribution.csv", "head_patching.csv"):
        assert [step for step in dict.fromkeys(row["step"] for row in rows(name))] == ["0", "3", "6"]
    assert {row["norm"] for row in rows("head_attribution.csv")} == {"none"}
    assert (tmp_path / "emergence.json").exists()
