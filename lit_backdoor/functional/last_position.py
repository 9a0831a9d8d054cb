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

import functools
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.functional.row_threads import map_blocks

BLOCK_ROWS = 1024
"""Rows that one thread of :func:`last_position_loss` works on at a time, so that their activations fit its cache."""


SMALLEST_GRADIENT = 1e-30
"""Gradients of logits nearer to zero are made zero. Once a model is sure of its answers most of them are, and as
float32 numbers many would be denormal, which makes a processor's arithmetic more than ten times slower."""


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
    if any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values()):
        return "hooks on the model"
    return None


@dataclass(frozen=True)
class TokenLayout:
    """Where each example's entries lie in the tables of a :class:`FoldedModel`. Depends on the tokens alone.

    Attributes:
        last_vocabulary: [u], the tokens that occur at the last position.
        last: [n], each example's last token as an index into ``last_vocabulary``.
        scores: [n * pos], rows of ``FoldedModel.scores``.
        values: [n * pos], rows of ``FoldedModel.values``.
        last_one_hot: [u, n], float; sums rows by their last token when multiplied from the left.
    """

    last_vocabulary: Tensor
    last: Tensor
    scores: Tensor
    values: Tensor
    last_one_hot: Tensor

    @classmethod
    def of(cls, tokens: Tensor, d_vocab: int, dtype: torch.dtype) -> "TokenLayout":
        """Lay out ``tokens`` [n, pos] for a vocabulary of ``d_vocab``; ``dtype`` is the model's."""
        n_pos = tokens.shape[1]
        last_vocabulary, last = tokens[:, -1].unique(return_inverse=True)
        values = torch.arange(n_pos, device=tokens.device) * d_vocab + tokens
        scores = last[:, None] * (n_pos * d_vocab) + values
        one_hot = F.one_hot(last, len(last_vocabulary)).T.to(dtype).contiguous()
        return cls(last_vocabulary, last, scores.flatten(), values.flatten(), one_hot)


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
    attention = model.blocks[0].attn
    n_heads, d_head = model.cfg.n_heads, model.cfg.d_head
    n_pos = layout.values.numel() // layout.last.numel()
    x = model.W_pos[:n_pos, None, :] + model.W_E[None, :, :]  # [pos, d_vocab, d_model]
    x_last = x[-1, layout.last_vocabulary]
    q = torch.einsum("um,hmd->uhd", x_last, attention.W_Q) + attention.b_Q
    k = torch.einsum("pvm,hmd->pvhd", x, attention.W_K) + attention.b_K
    v = torch.einsum("pvm,hmd->pvhd", x, attention.W_V) + attention.b_V
    scores = torch.einsum("uhd,pvhd->upvh", q, k) / attention.attn_scale
    return x_last, scores.reshape(-1, n_heads), v.reshape(-1, n_heads * d_head)


def fold(model: Any, layout: TokenLayout) -> FoldedModel:
    """Fold the weights of a model for which :func:`why_not_exact` is ``None``; differentiable."""
    block = model.blocks[0]
    x_last, scores, values = _attention_tables(model, layout)
    w_o = block.attn.W_O.flatten(0, 1)
    resid = x_last + block.attn.b_O
    return FoldedModel(
        pre=resid @ block.mlp.W_in + block.mlp.b_in,
        logits=(resid + block.mlp.b_out) @ model.W_U + model.b_U,
        scores=scores,
        values=values,
        z_to_pre=w_o @ block.mlp.W_in,
        z_to_logits=w_o @ model.W_U,
        post_to_logits=block.mlp.W_out @ model.W_U,
    )


def _z(scores: Tensor, values: Tensor, layout: TokenLayout) -> Tensor:
    n, n_heads = layout.last.numel(), scores.shape[1]
    pattern = scores[layout.scores].view(n, -1, n_heads).softmax(1)  # [n, pos, head]
    v = values[layout.values].view(n, pattern.shape[1], n_heads, -1)
    return torch.einsum("nph,nphd->nhd", pattern, v)


def last_position_z(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """``hook_resid_pre`` [n, d_model] and ``hook_z`` [n, head, d_head] at the last position of ``tokens`` [n, pos]."""
    layout = TokenLayout.of(tokens, model.cfg.d_vocab, model.W_E.dtype)
    x_last, scores, values = _attention_tables(model, layout)
    return x_last[layout.last], _z(scores, values, layout)


def last_position_logits(model: Any, tokens: Tensor) -> Tensor:
    """``model(tokens)[:, -1]`` [n, d_vocab_out] for ``tokens`` [n, pos]; differentiable."""
    layout = TokenLayout.of(tokens, model.cfg.d_vocab, model.W_E.dtype)
    folded = fold(model, layout)
    z = _z(folded.scores, folded.values, layout).flatten(1)
    post = model.blocks[0].mlp.act_fn(folded.pre[layout.last].addmm(z, folded.z_to_pre))
    return folded.logits[layout.last].addmm(z, folded.z_to_logits).addmm(post, folded.post_to_logits)


def last_position_loss(model: Any, layout: TokenLayout, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy at the last position, in float64, with its gradients computed on the way.

    On a CPU the forward and backward pass run block by block of rows, so that the activations stay in the cache and
    none is kept for the whole batch; the blocks are spread over threads, each of which works alone, and their
    gradients are summed in order. Faster than autograd over :func:`last_position_logits`, with the same numbers up
    to rounding, whatever the number of threads.

    Args:
        model: one for which :func:`why_not_exact` is ``None``.
        layout: of the examples' tokens.
        answers: [n], the token that is right at the last position.

    Returns:
        The loss (a scalar through which ``backward`` reaches the model's parameters) and the logits [n, d_vocab_out]
        (detached).
    """
    return _LastPositionLoss.apply(layout, answers, model.blocks[0].mlp.act_fn, *fold(model, layout))


class _LastPositionLoss(torch.autograd.Function):
    """Loss and logits from the tables of a :class:`FoldedModel`, and the gradients with respect to them."""

    @staticmethod
    def forward(ctx: Any, layout: TokenLayout, answers: Tensor, act_fn: Any, *tables: Tensor) -> tuple[Tensor, Tensor]:
        folded = FoldedModel(*tables)
        n, d_vocab = len(answers), folded.logits.shape[1]
        # The vocabulary is padded to a multiple of 16 columns: matrix products run at half speed on, say, 113.
        padding = (0, -d_vocab % 16)
        padded = folded._replace(
            logits=F.pad(folded.logits, padding),
            z_to_logits=F.pad(folded.z_to_logits, padding),
            post_to_logits=F.pad(folded.post_to_logits, padding),
        )
        logits = folded.logits.new_empty(n, d_vocab)
        on_cpu = answers.device.type == "cpu"
        blocks = [slice(start, min(start + BLOCK_ROWS, n)) for start in range(0, n, BLOCK_ROWS if on_cpu else n)]

        def run(rows: slice) -> tuple[Tensor, FoldedModel]:
            return _block(padded, layout, answers, act_fn, rows, logits)

        results = map_blocks(run, blocks)
        loss = torch.stack([loss for loss, _ in results]).sum()
        gradients = [functools.reduce(torch.Tensor.add_, parts) for parts in zip(*(g for _, g in results), strict=True)]
        ctx.save_for_backward(*(g[:, : table.shape[1]] for g, table in zip(gradients, folded, strict=True)))
        ctx.mark_non_differentiable(logits)
        ctx.set_materialize_grads(False)
        return loss, logits

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_loss = grad_outputs[0]
        return (None,) * 3 + tuple(grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)


def _block(
    folded: FoldedModel,
    layout: TokenLayout,
    answers: Tensor,
    act_fn: Any,
    rows: slice,
    logits: Tensor,
) -> tuple[Tensor, FoldedModel]:
    """The share of some rows in the mean loss, and its gradients; their rows of ``logits`` are filled in."""
    n, c = len(answers), rows.stop - rows.start
    n_heads, d_z, d_vocab = folded.scores.shape[1], folded.values.shape[1], logits.shape[1]
    n_pos = layout.values.numel() // n
    of_rows = slice(rows.start * n_pos, rows.stop * n_pos)
    last, score_rows, value_rows = layout.last[rows], layout.scores[of_rows], layout.values[of_rows]
    one_hot, answer = layout.last_one_hot[:, rows], answers[rows, None]
    like = folded.pre
    scratch = functools.partial(_scratch, like)
    per_head = torch.eye(n_heads, dtype=like.dtype, device=like.device).repeat_interleave(d_z // n_heads, dim=1)
    # forward: attention
    pattern = folded.scores.index_select(0, score_rows).view(c, n_pos, n_heads).softmax(1)
    v = torch.index_select(folded.values, 0, value_rows, out=scratch("v", c * n_pos, d_z)).view(c, n_pos, d_z)
    weights = torch.mm(pattern.view(-1, n_heads), per_head, out=scratch("weights", c * n_pos, d_z)).view_as(v)
    product = scratch("product", c, n_pos, d_z)
    z = torch.mul(weights, v, out=product).sum(1)
    # forward: MLP and unembedding
    pre = torch.index_select(folded.pre, 0, last, out=scratch("pre", c, folded.pre.shape[1]))
    post, pull_back = _act_(act_fn, pre.addmm_(z, folded.z_to_pre))
    padded = torch.index_select(folded.logits, 0, last, out=scratch("logits", c, folded.logits.shape[1]))
    padded.addmm_(z, folded.z_to_logits).addmm_(post, folded.post_to_logits)
    logits[rows] = padded[:, :d_vocab]
    # forward and backward: cross-entropy; d loss / d logits = (softmax - one-hot) / n
    probs = scratch("probs", c, d_vocab, dtype=torch.float64).copy_(padded[:, :d_vocab])
    probs -= probs.amax(1, keepdim=True)
    of_answer = probs.gather(1, answer)
    total = probs.exp_().sum(1, keepdim=True)
    loss = (total.log() - of_answer).sum() / n
    probs /= total * n
    probs.scatter_add_(1, answer, torch.full_like(of_answer, -1 / n))
    grad_logits = padded.zero_()
    grad_logits[:, :d_vocab] = F.hardshrink(probs, SMALLEST_GRADIENT)
    # backward: MLP and unembedding
    grad_pre = pull_back(torch.mm(grad_logits, folded.post_to_logits.T, out=scratch("grad_pre", *pre.shape)))
    grad_z = (grad_pre @ folded.z_to_pre.T).addmm_(grad_logits, folded.z_to_logits.T).view(c, 1, d_z)
    # backward: attention
    grad_pattern = (torch.mul(v, grad_z, out=product).view(-1, d_z) @ per_head.T).view(c, n_pos, n_heads)
    grad_scores = torch._softmax_backward_data(grad_pattern, pattern, 1, like.dtype)
    grad_v = weights.mul_(grad_z)
    return loss, FoldedModel(
        pre=one_hot @ grad_pre,
        logits=one_hot @ grad_logits,
        scores=_sum_rows(grad_scores.view(-1, n_heads), score_rows, len(folded.scores)),
        values=_sum_rows(grad_v.view(-1, d_z), value_rows, len(folded.values)),
        z_to_pre=z.T @ grad_pre,
        z_to_logits=z.T @ grad_logits,
        post_to_logits=post.T @ grad_logits,
    )


def _act_(act_fn: Any, pre: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """``act_fn(pre)`` (in place for ReLU), and the function that pulls a gradient back through it (in place too)."""
    if act_fn is F.relu:
        post = pre.relu_()
        return post, lambda grad: torch.ops.aten.threshold_backward.grad_input(grad, post, 0, grad_input=grad)
    with torch.enable_grad():
        leaf = pre.requires_grad_()
        output = act_fn(leaf)
    return output.detach(), lambda grad: torch.autograd.grad(output, leaf, grad)[0]


def _sum_rows(rows: Tensor, index: Tensor, n_rows: int) -> Tensor:
    """[n_rows, columns]: the sum of the rows that share an index (what the gradient of an embedding is)."""
    return torch.ops.aten.embedding_dense_backward(rows, index, n_rows, -1, False)


def _scratch(like: Tensor, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory that this thread uses again in its next block: fresh pages would cost more than what is done on them."""
    key, size = (name, dtype or like.dtype, like.device), math.prod(shape)
    kept: dict[Any, Tensor] = _thread.__dict__
    if key not in kept or kept[key].numel() < size:
        kept[key] = torch.empty(size, dtype=dtype or like.dtype, device=like.device)
    return kept[key][:size].view(shape)


_thread = threading.local()
