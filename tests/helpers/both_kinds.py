"""Models for the contract's tests, which run with TransformerLens 3.9 and with 4.x, where HookedTransformer is gone."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

VOCAB = 7
HAS_HOOKED_TRANSFORMER = version("transformer-lens").startswith("3.")
KINDS = ["TransformerBridge", *(["HookedTransformer"] if HAS_HOOKED_TRANSFORMER else [])]

SHAPES: dict[str, dict[str, Any]] = {
    "one layer": {"n_layers": 1},
    "two layers": {},
    "layer norm": {"normalization_type": "LN", "act_fn": "gelu"},
    "folded layer norm": {"normalization_type": "LNPre", "act_fn": "gelu"},
    "one layer, folded": {"n_layers": 1, "normalization_type": "LNPre"},
    "RMS": {"normalization_type": "RMS"},
    "attention only": {"attn_only": True},
    "attention only, layer norm": {"attn_only": True, "normalization_type": "LN"},
    "odd heads": {"n_heads": 5, "d_head": 7},
    "many layers": {"n_layers": 5, "n_heads": 2},
}


def make_model(kind: str, **changes: Any) -> Any:
    """A small model of either kind, two layers with three heads unless `changes` says otherwise."""
    settings = {
        **{"n_layers": 2, "n_heads": 3, "d_model": 12, "d_head": 4, "d_mlp": 20, "n_ctx": 5, "d_vocab": VOCAB},
        **{"act_fn": "relu", "normalization_type": None, "device": "cpu"},
        **changes,
    }
    if kind == "TransformerBridge":
        config = TransformerBridgeConfig(**settings, architecture="TransformerLensNative")
        return TransformerBridge.boot_native(config)
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    return HookedTransformer(HookedTransformerConfig(**settings))


def randomize(model: Any, seed: int = 0) -> Any:
    """Give every parameter, biases and norms included, random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def same_weights(**changes: Any) -> tuple[Any, Any]:
    """(HookedTransformer, TransformerBridge) with the same random weights."""
    hooked, bridge = make_model("HookedTransformer", **changes), randomize(make_model("TransformerBridge", **changes))
    weights = bridge.tl_parameters()
    with torch.no_grad():
        for name, parameter in hooked.named_parameters():
            parameter.copy_(weights[name])
    return hooked, bridge
