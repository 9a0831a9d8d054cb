"""TransformerBridge, TransformerLens's successor of HookedTransformer: the same numbers for the same weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from lit_backdoor.functional import (
    HookedModel,
    attribute_heads,
    cache_probes,
    default_head_sets,
    logit_parts,
    patch_heads,
)

from .tiny import VOCAB, make_model, make_probe


@pytest.fixture(params=[(1, None), (2, None), (2, "LN"), (1, "LNPre")])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(HookedTransformer, TransformerBridge) with the same random weights."""
    n_layers, norm = request.param
    shape = {"n_layers": n_layers, "n_heads": 3, "d_model": 12, "d_head": 4, "d_mlp": 20, "n_ctx": 3}
    settings = {**shape, "d_vocab": VOCAB, "act_fn": "relu", "normalization_type": norm, "device": "cpu"}
    hooked = make_model(**settings)
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**settings, architecture="TransformerLensNative"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        weights = bridge.tl_parameters()
        for name, parameter in hooked.named_parameters():
            parameter.copy_(weights[name])
    return hooked, bridge


def test_the_bridge_gives_the_same_numbers(pair: tuple[Any, Any], untouched: Any) -> None:
    hooked, bridge = pair
    probe = make_probe()
    unchanged = untouched(bridge)
    probe.check(bridge)
    assert isinstance(bridge, HookedModel)
    assert cache_probes(bridge, probe) == ()
    parts = logit_parts(bridge, probe)
    assert parts.labels == logit_parts(hooked, probe).labels
    torch.testing.assert_close(parts.values, logit_parts(hooked, probe).values, rtol=1e-4, atol=1e-4)
    sets = default_head_sets(hooked.cfg.n_layers, 3)[:6]
    both = [
        *zip(attribute_heads(bridge, probe), attribute_heads(hooked, probe), strict=True),
        *zip(patch_heads(bridge, probe, sets), patch_heads(hooked, probe, sets), strict=True),
    ]
    for ours, theirs in both:
        for name, value in asdict(ours).items():
            expected = getattr(theirs, name)
            assert value == (pytest.approx(expected, rel=1e-3, abs=1e-4) if isinstance(value, float) else expected)
    unchanged()
