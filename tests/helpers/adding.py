"""A model of a + b mod p built by hand, and weights as other people store them: none of the package's own code."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def adding_weights(p: int, n_pos: int, vocabulary: int, n_heads: int = 2) -> Weights:
    """Weights in TransformerLens's layout that answer a + b mod p for every pair, whatever else is in the example.

    The residual stream holds which token is here, how often each token is in the example (all heads look at all
    positions alike), and the answer. A neuron for each pair of numbers fires if both are there, and one for each number
    if it is there twice; the MLP's biases are what tells one number from two.

    Args:
        p: the modulus.
        n_pos: tokens of an example.
        vocabulary: tokens that the model knows, p or more.
        n_heads: each writes its share.
    """
    numbers = [*((a, b) for a in range(p) for b in range(a + 1, p)), *((a, a) for a in range(p))]
    d_model, d_mlp, count, answer = 2 * vocabulary + p, len(numbers), vocabulary, 2 * vocabulary
    weights = {
        "embed.W_E": torch.eye(vocabulary, d_model),
        "pos_embed.W_pos": torch.zeros(n_pos, d_model),
        **{f"blocks.0.attn.W_{kind}": torch.zeros(n_heads, d_model, vocabulary) for kind in "QKV"},
        "blocks.0.attn.W_O": torch.zeros(n_heads, vocabulary, d_model),
        "blocks.0.mlp.W_in": torch.zeros(d_model, d_mlp),
        "blocks.0.mlp.b_in": -torch.ones(d_mlp),
        "blocks.0.mlp.W_out": torch.zeros(d_mlp, d_model),
        "blocks.0.mlp.b_out": torch.zeros(d_model),
        "unembed.W_U": torch.zeros(d_model, p),
    }
    weights["blocks.0.attn.W_V"][:, :vocabulary] = torch.eye(vocabulary)
    weights["blocks.0.attn.W_O"][:, :, count : count + vocabulary] = torch.eye(vocabulary) * n_pos / n_heads
    weights["unembed.W_U"][answer:] = torch.eye(p)
    for neuron, (a, b) in enumerate(numbers):
        weights["blocks.0.mlp.W_in"][[count + a, count + b], neuron] = 1.0
        weights["blocks.0.mlp.W_out"][neuron, answer + (a + b) % p] = 1.0 if a < b else p + 1.0  # outvotes the pairs
    return weights


def as_nanda(weights: Weights) -> Weights:
    """The same weights as the first papers on grokking store them."""

    def turned(name: str, value: Tensor) -> Tensor:
        kind = name.rpartition(".")[2]
        if kind == "W_O":  # [head, d_head, d_model] to [d_model, head * d_head]
            return torch.einsum("hdm->mhd", value).reshape(value.shape[2], -1)
        if kind in ("W_Q", "W_K", "W_V"):
            return torch.einsum("hmd->hdm", value).contiguous()
        return value.T.contiguous() if kind in ("W_E", "W_in", "W_out") else value

    return {name: turned(name, value) for name, value in weights.items()}


def nanda_logits(weights: Weights, tokens: Tensor, causal: bool) -> Tensor:
    """The forward pass of those papers' code, one layer with ReLU, [n, pos, vocab], for weights in its layout."""
    block = {name.removeprefix("blocks.0."): value for name, value in weights.items()}
    x = weights["embed.W_E"].T[tokens] + weights["pos_embed.W_pos"][: tokens.shape[1]]
    q, k, v = (torch.einsum("ihd,bpd->biph", block[f"attn.W_{kind}"], x) for kind in "QKV")
    scores = torch.einsum("biph,biqh->biqp", k, q) / sqrt(k.shape[-1])
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -1e10).triu(1)
    z = torch.einsum("biph,biqp->biqh", v, scores.softmax(-1))
    x = x + torch.einsum("df,bqf->bqd", block["attn.W_O"], z.transpose(1, 2).flatten(2))
    post = torch.relu(torch.einsum("md,bpd->bpm", block["mlp.W_in"], x) + block["mlp.b_in"])
    x = x + torch.einsum("dm,bpm->bpd", block["mlp.W_out"], post) + block["mlp.b_out"]
    return x @ weights["unembed.W_U"]
