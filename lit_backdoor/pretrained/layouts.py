"""How other people store a small transformer, turned into the names and shapes of TransformerLens.

- ``transformer_lens``: W_E [vocab, d_model], W_Q, W_K and W_V [head, d_model, d_head], W_O [head, d_head, d_model],
  W_in [d_model, d_mlp], W_out [d_mlp, d_model].
- ``nanda``, of the first papers on grokking: W_E [d_model, vocab], W_Q, W_K and W_V [head, d_head, d_model], W_O
  [d_model, head * d_head], W_in [d_mlp, d_model], W_out [d_model, d_mlp].

W_pos [pos, d_model], W_U [d_model, vocab] and the biases are the same in both.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

Layout = Literal["auto", "transformer_lens", "nanda"]
Weights = Mapping[str, Tensor]

ANY_W_O = "blocks.0.attn.W_O"
"""Its dimensions tell the layouts apart."""
PARTS = ("embed", "pos_embed", "blocks", "ln_final", "unembed")
"""Where the names of a model's weights begin."""
BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
"""Constants. They say nothing: a model that is not causal may carry a causal mask."""

MAY_LACK = ("pos_embed.W_pos", "blocks.0.mlp.W_in")
"""Positions may be rotated in instead, and there may be attention alone."""


def as_transformer_lens(weights: Weights, layout: Layout) -> tuple[dict[str, Tensor], Layout]:
    """The weights as TransformerLens has them, and the layout that they had.

    Raises:
        ValueError: they have another layout than ``layout`` says, or none of the two.
    """
    n_dims = weights[ANY_W_O].ndim if ANY_W_O in weights else None
    by_dims: dict[int | None, Layout] = {2: "nanda", 3: "transformer_lens"}
    found = by_dims.get(n_dims)
    if found is None:
        has = "no such weight" if n_dims is None else f"{n_dims} dimensions"
        raise ValueError(f"layout: {ANY_W_O} tells the layouts apart, 3 dimensions or 2, and there is {has}")
    if layout not in ("auto", found):
        raise ValueError(f"layout: {layout} is not how it is stored; {ANY_W_O} has {n_dims} dimensions: {found}")
    if found == "nanda":
        queries = weights.get("blocks.0.attn.W_Q")
        n_heads = max(1, len(queries)) if queries is not None and queries.ndim else 1
        weights = {name: _from_nanda(name, value, n_heads) for name, value in weights.items()}
    return dict(weights), found


def _from_nanda(name: str, value: Tensor, n_heads: int) -> Tensor:
    """One weight; left as it is where its shape can't be that of this layout, to be refused by name later."""
    kind = name.rpartition(".")[2]
    if kind == "W_O" and value.ndim == 2 and value.shape[1] % n_heads == 0:
        return value.T.unflatten(0, (n_heads, -1))
    if kind in ("W_E", "W_in", "W_out") and value.ndim == 2:
        return value.T
    return value.mT if kind in ("W_Q", "W_K", "W_V") and value.ndim == 3 else value


def sizes_of(weights: Weights) -> dict[str, Any]:
    """What the weights say of their model: the fields of HookedTransformerConfig that shapes determine.

    Args:
        weights: as TransformerLens has them.

    Raises:
        ValueError: a weight is missing that every such model has, is no tensor of the right number of dimensions, or
            does not say of which layer it is.
    """
    dims = {"embed.W_E": 2, "unembed.W_U": 2, "blocks.0.attn.W_Q": 3, "pos_embed.W_pos": 2, "blocks.0.mlp.W_in": 2}
    for name, n_dims in dims.items():
        if name not in weights and name not in MAY_LACK:
            raise ValueError(f"it lacks the weight {name}")
        if name in weights and weights[name].ndim != n_dims:
            raise ValueError(f"it has {name} in the shape {list(weights[name].shape)} instead of {n_dims} dimensions")
    (d_vocab, d_model), (_, d_vocab_out), (n_heads, _, d_head) = (weights[name].shape for name in list(dims)[:3])
    positions, mlp = weights.get("pos_embed.W_pos"), weights.get("blocks.0.mlp.W_in")
    norm = None if "ln_final.w" not in weights else "LN" if "ln_final.b" in weights else "RMS"
    sizes = {
        "n_layers": 1 + max(_layer(name) for name in weights if name.startswith("blocks.")),
        "n_heads": n_heads,
        "d_model": d_model,
        "d_head": d_head,
        "d_mlp": 4 * d_model if mlp is None else mlp.shape[-1],
        "attn_only": mlp is None,
        "gated_mlp": "blocks.0.mlp.W_gate" in weights,
        "d_vocab": d_vocab,
        "d_vocab_out": d_vocab_out,
        "normalization_type": norm,
        "dtype": "float64" if weights["embed.W_E"].element_size() == 8 else "float32",
    }
    return sizes if positions is None else sizes | {"n_ctx": len(positions)}


def _layer(name: str) -> int:
    """Of which layer a weight is, from 0."""
    if (number := re.match(r"blocks\.(\d{1,9})\.", name)) is None:
        raise ValueError(f"it has {name}, which is no weight of a layer; those are called blocks.0. and so on")
    return int(number[1])
