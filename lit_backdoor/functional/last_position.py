"""The exact last-position form of a one-layer transformer: the same function, without the work nobody reads.

Only the last position's logits enter the loss. Without normalisation, queries, keys and values depend on (token,
position) alone, so they are computed once per vocabulary entry and gathered, instead of once per example; and the
linear maps on either side of the activation function fold into one another:

    pre    = x_last W_in  +  z (W_O W_in)                         [n, d_mlp]
    logits = x_last W_U   +  z (W_O W_U)  +  act(pre) (W_out W_U)  [n, d_vocab_out]

with ``z`` the attention-weighted values of all heads at the last position (TransformerLens's ``hook_z``) and
``x_last`` the embedding at that position (``hook_embed + hook_pos_embed``). Biases fold into the first terms. The
parameters are the model's own and autograd runs through all of it, so gradients are those of the full forward pass,
up to rounding.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.functional.clamp import folded_clamp, hooks_that_fold
from lit_backdoor.functional.hooked_model import has_own_forward, is_hooked, why_rounded
from lit_backdoor.functional.products import product
from lit_backdoor.functional.row_threads import Result, map_blocks
from lit_backdoor.functional.token_layout import RowBlock, TokenLayout

SMALLEST_GRADIENT = 1e-30
"""Gradients of logits nearer to zero are made zero. Once a model is sure of its answers most of them are, and as
float32 numbers many would be denormal, which makes a processor's arithmetic more than ten times slower."""

KNOWN_MODULES = ("transformer_lens.", "torch.nn.")
"""Packages whose modules this form stands in for; a module from elsewhere may compute something else."""


def why_not_exact(model: Any) -> str | None:
    """``None`` if the last-position form is exact for this model, else the reason why it is not, in a few words."""
    home = sys.modules.get("transformer_lens.HookedTransformer")  # if it is not there, no model is one
    kind: Any = getattr(home, "HookedTransformer", ())
    if not isinstance(model, kind):
        return "not a HookedTransformer"
    cfg = model.cfg
    requirements = {
        "more than one layer": cfg.n_layers == 1,
        "normalisation layers": cfg.normalization_type is None and not cfg.post_embedding_ln,
        "attention that is not causal": cfg.attention_dir == "causal",
        "no MLP, or not a plain one": not (cfg.attn_only or cfg.gated_mlp or cfg.num_experts),
        "an activation function with a layer norm inside": not str(cfg.act_fn).endswith("_ln"),
        "positional embeddings that are not learnt and added": cfg.positional_embedding_type == "standard",
        "attention and MLP in parallel": not cfg.parallel_attn_mlp,
        "unusual attention": not (
            cfg.use_local_attn or cfg.use_qk_norm or cfg.clip_qkv or cfg.use_logn_attn or cfg.use_attention_sinks
        ),
        "grouped keys and values": cfg.n_key_value_heads in (None, cfg.n_heads),
        "a soft cap": cfg.attn_scores_soft_cap <= 0 and cfg.output_logits_soft_cap <= 0,
    }
    for reason, fulfilled in requirements.items():
        if not fulfilled:
            return reason
    if has_own_forward(model):
        return "a forward pass of its own"
    folded = hooks_that_fold(model)
    for module in model.modules():  # once: every training step asks
        if module is not model and not type(module).__module__.startswith(KNOWN_MODULES):
            return "a module of its own"
        if module._backward_hooks or module._backward_pre_hooks or is_hooked(module, but=folded):
            return "hooks on the model"
    return why_rounded(model)


class FoldedModel(NamedTuple):
    """The model's weights, folded for one :class:`TokenLayout`; u tokens occur at the last position."""

    pre: Tensor  # [u, d_mlp]           what x_last and the biases give to the MLP's pre-activation
    logits: Tensor  # [u, d_vocab_out]  what x_last and the biases give to the logits
    scores: Tensor  # [u * pos * d_vocab, head]  scaled attention scores, query token x key position x key token
    values: Tensor  # [pos * d_vocab, head * d_head]
    z_to_pre: Tensor  # [head * d_head, d_mlp]            W_O W_in
    z_to_logits: Tensor  # [head * d_head, d_vocab_out]   W_O W_U
    post_to_logits: Tensor  # [d_mlp, d_vocab_out]        W_out W_U


def _attention_tables(model: Any, layout: TokenLayout) -> tuple[Tensor, Tensor, Tensor]:
    """(x_last [u, d_model], scores [u * pos * d_vocab, head], values [pos * d_vocab, head * d_head])."""
    attention, n_heads, d_model = model.blocks[0].attn, layout.n_heads, model.cfg.d_model
    x = model.W_pos[: layout.n_pos, None, :] + model.W_E[None, :, :]  # [pos, d_vocab, d_model]
    x_last, x = x[-1, layout.last_vocabulary], x.flatten(0, 1)

    def project(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # to [rows, head * d_head]
        return product(inputs, weight.transpose(0, 1).reshape(d_model, -1)) + bias.flatten()

    q = project(x_last, attention.W_Q, attention.b_Q).unflatten(1, (n_heads, -1))
    k = project(x, attention.W_K, attention.b_K).unflatten(1, (n_heads, -1))
    scores = torch.einsum("uhd,rhd->urh", q, k) / attention.attn_scale
    return x_last, scores.reshape(-1, n_heads).contiguous(), project(x, attention.W_V, attention.b_V)


def fold(model: Any, layout: TokenLayout) -> FoldedModel:
    """Fold the weights of a model for which :func:`why_not_exact` is ``None``, as it is clamped now; differentiable."""
    block = model.blocks[0]
    x_last, scores, values = _attention_tables(model, layout)
    w_o = block.attn.W_O.flatten(0, 1)
    resid = x_last + block.attn.b_O
    clamp = folded_clamp(model)
    if clamp is not None and clamp.mode != "donor":  # a donor's tokens are in the layout
        share = clamp.share_of_rows(w_o, layout.n_heads)
        if clamp.mode == "mean":
            mean_z = attend(scores, values, layout.whole)[1].mean(0)
            resid = resid + product((share * mean_z)[None], w_o)
        w_o = (1 - share)[:, None] * w_o
    return FoldedModel(
        pre=product(resid, block.mlp.W_in) + block.mlp.b_in,
        logits=product(resid + block.mlp.b_out, model.W_U) + model.b_U,
        scores=scores,
        values=values,
        z_to_pre=product(w_o, block.mlp.W_in),
        z_to_logits=product(w_o, model.W_U),
        post_to_logits=product(block.mlp.W_out, model.W_U),
    )


def attend(scores: Tensor, values: Tensor, block: RowBlock) -> tuple[Tensor, Tensor]:
    """Attention pattern [pos, c * head] and ``z`` [c, head * d_head] at the last position of a block's rows."""
    pattern = F.embedding(block.scores, scores.view(-1, 1)).squeeze(-1).softmax(0)
    by_head = values.view(-1, values.shape[1] // block.layout.n_heads)  # [pos * d_vocab * head, d_head]
    z = F.embedding_bag(block.values.T.contiguous(), by_head, mode="sum", per_sample_weights=pattern.T.contiguous())
    return pattern, z.view(len(block.last), -1)


def last_position_attention(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the attention at the last position of ``tokens`` [n, pos] reads and computes.

    Returns:
        ``hook_resid_pre`` [n, d_model], ``hook_pattern`` [n, head, pos] and ``hook_z`` [n, head, d_head] there.
    """
    layout = TokenLayout.of(tokens, model)
    x_last, scores, values = _attention_tables(model, layout)
    patterns, zs = zip(*_by_blocks(layout, lambda block: attend(scores, values, block)), strict=True)
    pattern = torch.cat(patterns, dim=1).view(layout.n_pos, -1, layout.n_heads)
    return F.embedding(layout.last, x_last), pattern.permute(1, 2, 0), torch.cat(zs).unflatten(1, (layout.n_heads, -1))


def last_position_logits(model: Any, tokens: Tensor) -> Tensor:
    """``model(tokens)[:, -1]`` [n, d_vocab_out] for ``tokens`` [n, pos]; differentiable."""
    layout = TokenLayout.of(tokens, model)
    return folded_logits(model, fold(model, layout), layout)


def folded_logits(model: Any, folded: FoldedModel, layout: TokenLayout) -> Tensor:
    """The same from the folded weights of ``model`` and the layout of the tokens."""

    def of_rows(block: RowBlock) -> Tensor:
        z = attend(folded.scores, folded.values, block)[1]
        post = model.blocks[0].mlp.act_fn(product(z, folded.z_to_pre, F.embedding(block.last, folded.pre)))
        direct = product(z, folded.z_to_logits, F.embedding(block.last, folded.logits))
        return product(post, folded.post_to_logits, direct)

    return torch.cat(_by_blocks(layout, of_rows))


def _by_blocks(layout: TokenLayout, of_rows: Callable[[RowBlock], Result]) -> list[Result]:
    """Call ``of_rows`` on blocks that are spread over threads, or on all rows at once where autograd has to look on."""
    if torch.is_grad_enabled():
        return [of_rows(layout.whole)]
    return map_blocks(of_rows, layout.blocks)
