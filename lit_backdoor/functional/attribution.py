"""Direct logit attribution: what each part of a model writes straight into the answer's logit.

The logits are linear in the residual stream, and the residual stream is a sum: token and position embeddings,
what every head and every MLP adds, and biases. So the logit of the answer is a sum too, of one number per
part (paper, Sections 2.1 and B.5; Elhage et al. 2021). Attribution is not an ablation: a head also acts
through the MLPs and the heads behind it, which this does not see.

Parts are added up in float32 at least, also where the model computes in fewer bits; they then miss the logit by what
the model itself rounds.

A final norm is not linear. Its scale is taken as a constant of each example ("frozen"), as in
TransformerLens's `apply_ln_to_stack`; the parts then still add up to the logit exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_backdoor.functional import metrics
from lit_backdoor.functional.heads import all_heads, head_name
from lit_backdoor.functional.hooked_model import HookedModel, evaluating, row_slices, z_name
from lit_backdoor.functional.one_layer import HeadCache, find_cache, why_no_shortcut
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import HeadAttribution, Norm


@dataclass(frozen=True, eq=False)
class LogitParts:
    """The logit of the recipient's answer, split into all parts of the model, example by example.

    Args:
        labels: the parts' names: `embed`, `pos_embed`, then for each layer `L0H0` ..., `L0 b_O`, `L0 mlp`,
            then `ln_final bias` (with a final norm) and `b_U`.
        values: [part, n]; the sum over the parts is `logit`.
        centered: [part, n]; the same minus each part's mean over the vocabulary.
        logit: the model's own logit of the answer, [n].
        norm: how the final norm was treated.
    """

    labels: tuple[str, ...]
    values: Tensor
    centered: Tensor
    logit: Tensor
    norm: Norm


def attribute_heads(model: HookedModel, probe: Probe, caches: Sequence[HeadCache] = ()) -> list[HeadAttribution]:
    """Attribute the recipient's answers to the heads; one result per head, in order.

    Args:
        model: any `HookedModel` whose logits are linear in the residual stream (up to a final norm), with the hook
            points `hook_embed`, `blocks.0.hook_resid_pre`, with MLPs `blocks.{layer}.hook_mlp_out`, and with a final
            norm `ln_final.hook_scale`. `cfg.normalization_type` names that norm: None, LN or RMS, or LNPre or RMSPre
            where its weights are folded into `W_U`.
        probe: the recipient's tokens are run; the donor's answers serve `mean_logit_diff`.
        caches: from `cache_probes`, to save the forward pass of a plain one-layer model.

    Raises:
        ValueError: the contributions would not add up to the logit; the message says why.
    """
    probe = probe.to(model.W_U.device)
    targets = (probe.recipient_answers, probe.donor_answers)
    with evaluating(model):
        linear = _linear_readout(model)
        if linear.norm == "none" and why_no_shortcut(model) is None:
            cache = find_cache(model, caches, probe.recipient_tokens, probe.position)
            shares = torch.cat(
                [
                    _heads(cache.z[rows], model.W_O[0], linear.directions([t[rows] for t in targets]))
                    for rows in row_slices(probe.n_examples)
                ],
                dim=-1,
            )
        else:
            labels, parts, _ = _split(model, linear, probe.recipient_tokens, probe.position, targets)
            names = {head_name(*head) for head in all_heads(model)}
            shares = parts[[i for i, label in enumerate(labels) if label in names]]
    answer, other, vocab_mean = shares.unbind(dim=1)  # each [layer * head, n]
    top = answer.argmax(dim=0).bincount(minlength=len(answer)).tolist()  # argmax: the first of equals
    results = []
    for i, head in enumerate(all_heads(model)):
        difference = metrics.mean(answer[i] - other[i], where=probe.answers_differ)
        results.append(
            HeadAttribution(
                head=head,
                mean_logit=metrics.mean(answer[i]).value,
                mean_logit_centered=metrics.mean(answer[i] - vocab_mean[i]).value,
                mean_logit_diff=difference.value,
                n_differing=difference.n,
                top_count=top[i],
                n_examples=probe.n_examples,
                norm=linear.norm,
            )
        )
    return results


def logit_parts(model: HookedModel, probe: Probe) -> LogitParts:
    """Split the logit of each of the recipient's answers into the parts of the model that write it.

    Args:
        model: as for `attribute_heads`.
        probe: the recipient's tokens are run, its answers' logits are split; the donor plays no part.

    Raises:
        ValueError: the parts would not add up to the logit; the message says why.
    """
    probe = probe.to(model.W_U.device)
    with evaluating(model):
        linear = _linear_readout(model)
        labels, parts, logits = _split(model, linear, probe.recipient_tokens, probe.position, [probe.recipient_answers])
    answer, vocab_mean = parts.unbind(dim=1)
    return LogitParts(tuple(labels), answer, answer - vocab_mean, logits[0], linear.norm)


@dataclass(frozen=True, eq=False)
class _LinearReadout:
    """The map from the residual stream to the logits, for a given scale of the final norm.

    `logits = (resid @ weight) / scale + norm_bias + b_U`; the norm's weight and its centring are in `weight`.
    """

    norm: Norm
    weight: Tensor  # [d_model, vocab]
    norm_bias: Tensor  # [vocab]
    b_U: Tensor  # [vocab]

    def directions(self, targets: Sequence[Tensor]) -> Tensor:
        """What a residual stream is multiplied with, before scaling, for each of `targets` [n] and for the
        mean over the vocabulary; [target + 1, n, d_model]."""
        mean = self.weight.mean(dim=1).expand(len(targets[0]), -1)
        return torch.stack([*(self.weight.T[target.long()] for target in targets), mean])


def _linear_readout(model: Any) -> _LinearReadout:
    """Read the final norm and the unembedding; ValueError if logits are not linear but for a norm's scale."""
    cfg, weight = model.cfg, _wide(model.W_U)
    if getattr(cfg, "output_logits_soft_cap", 0) > 0:
        raise ValueError("the logits are soft-capped: they are not a sum of parts. Patch the heads instead.")
    norm_type = cfg.normalization_type
    b_U = _parameter(model, "b_U", like=weight[0])
    if norm_type is None:
        return _LinearReadout("none", weight, torch.zeros_like(b_U), b_U)
    if norm_type not in ("LN", "LNPre", "RMS", "RMSPre"):
        raise ValueError(f"cfg.normalization_type is {norm_type!r}: only None, LN, LNPre, RMS, RMSPre can be split.")
    with _without_autocast(weight):
        norm_bias = _parameter(model.ln_final, "b", like=weight[:, 0]) @ weight
    if (w := getattr(model.ln_final, "w", None)) is not None:
        weight = _wide(w)[:, None] * weight
    if norm_type in ("LN", "LNPre") and not getattr(cfg, "final_rms", False):
        weight = weight - weight.mean(dim=0)  # centring the residual stream, done on the other side
    return _LinearReadout("frozen LN scale", weight, norm_bias, b_U)


def _parameter(owner: Any, name: str, like: Tensor) -> Tensor:
    """A bias that a model may not have; then zeros, of the shape of `like`."""
    value = getattr(owner, name, None)
    return torch.zeros_like(like) if value is None else _wide(value)


def _without_autocast(values: Tensor) -> torch.autocast:
    """What is added up stays as precise as it is; only the model's own pass is under autocast."""
    return torch.autocast(values.device.type, enabled=False)


def _wide(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _split(
    model: Any, linear: _LinearReadout, tokens: Tensor, position: int, targets: Sequence[Tensor]
) -> tuple[list[str], Tensor, Tensor]:
    """Labels, what each part adds to each target's logit and to the mean logit, [part, target + 1, n], and
    those logits themselves, [target + 1, n]. ValueError if the parts do not add up."""
    pieces, logits = [], []
    for rows in row_slices(len(tokens)):
        at = _run(model, linear, tokens[rows], position)
        with _without_autocast(tokens):
            labels, parts, own = _split_rows(model, linear, at, [t[rows] for t in targets])
        pieces.append(parts)
        logits.append(own)
    parts, own = torch.cat(pieces, dim=-1), torch.cat(logits, dim=-1)
    error = float((parts.sum(dim=0) - own).abs().max())
    computed, device = model.W_U.dtype, own.device.type
    if torch.is_autocast_enabled(device):
        computed = torch.get_autocast_dtype(device)
    if error > max(1e-3, 4 * torch.finfo(computed).eps) * float(parts.abs().sum(dim=0).max()):
        raise ValueError(
            f"the parts of {type(model).__name__} miss its logits by {error:.2g}: something else is written "
            "to the residual stream, or what heads and MLPs write is normalised first. Patch them instead."
        )
    return labels, parts, own


def _run(model: Any, linear: _LinearReadout, tokens: Tensor, position: int) -> dict[str, Tensor]:
    """What the model computes at `position`, by hook, each [n, ...], and its `logits` [n, vocab], for so few rows that
    all activations fit into memory."""
    layers = range(model.cfg.n_layers)
    names = ["hook_embed", "blocks.0.hook_resid_pre", *map(z_name, layers), *_mlps(model)]
    if linear.norm != "none":
        names.append("ln_final.hook_scale")
    logits, cache = model.run_with_cache(tokens, names_filter=names)
    if missing := set(names) - set(cache.keys()):
        raise ValueError(f"{type(model).__name__} has no hook points {sorted(missing)}, which attribution reads.")
    return {name: _wide(value[:, position]) for name, value in [("logits", logits), *((n, cache[n]) for n in names)]}


def _mlps(model: Any) -> list[str]:
    """The hooks on what each MLP writes, if there are MLPs."""
    return [
        f"blocks.{layer}.hook_mlp_out"
        for layer in range(model.cfg.n_layers)
        if not getattr(model.cfg, "attn_only", False)
    ]


def _split_rows(
    model: Any, linear: _LinearReadout, at: dict[str, Tensor], targets: Sequence[Tensor]
) -> tuple[list[str], Tensor, Tensor]:
    """`_split` of what `_run` has read."""
    directions = linear.directions(targets)  # [target + 1, n, d_model]
    if linear.norm != "none":
        directions = directions / at["ln_final.hook_scale"]

    def write(resid: Tensor) -> Tensor:  # [n, d_model] or [d_model] to [1, target + 1, n]
        return (directions * resid).sum(dim=-1)[None]

    def constant(bias: Tensor) -> Tensor:  # [vocab] to [1, target + 1, n]
        return torch.stack([*(bias[t.long()] for t in targets), bias.mean().expand(len(targets[0]))])[None]

    embed, W_O = at["hook_embed"], _wide(model.W_O)
    b_O = _parameter(model, "b_O", like=W_O[:, 0, 0])
    labels = ["embed", "pos_embed"]
    parts = [write(embed), write(at["blocks.0.hook_resid_pre"] - embed)]
    mlps = _mlps(model)
    for layer in range(model.cfg.n_layers):
        labels += [*(head_name(layer, head) for head in range(model.cfg.n_heads)), f"L{layer} b_O"]
        parts += [_heads(at[z_name(layer)], W_O[layer], directions), write(b_O[layer])]
        if mlps:
            labels.append(f"L{layer} mlp")
            parts.append(write(at[mlps[layer]]))
    if linear.norm != "none":
        labels.append("ln_final bias")
        parts.append(constant(linear.norm_bias))
    labels.append("b_U")
    parts.append(constant(linear.b_U))
    logits = at["logits"]
    own = torch.stack([*(logits.gather(-1, t.long()[:, None])[:, 0] for t in targets), logits.mean(dim=-1)])
    return labels, torch.cat(parts), own


def _heads(z: Tensor, W_O: Tensor, directions: Tensor) -> Tensor:
    """What each head adds in each direction, [head, target + 1, n], from `z` [n, head, d_head], `W_O`
    [head, d_head, d_model] and `directions` [target + 1, n, d_model]; no head's whole output is built."""
    reads = torch.einsum("tnm,hdm->tnhd", directions, W_O)
    return torch.einsum("nhd,tnhd->htn", z, reads)
