"""Clamped heads: in every pass their `z` is replaced, and gradients flow through what is left.

A clamp is a hook on each layer's `hook_z`, so that it acts in any hooked model. The exact last-position form
(`lit_backdoor.functional.last_position`) knows the clamps of this module and folds them into its tables instead:

- `zero` and `mean`: the head's rows of W_O shrink, and the mean's output joins the residual stream.
- `donor`: the head looks the donor's tokens up in the same tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lit_backdoor.functional.heads import HeadSet, all_heads, head_name
from lit_backdoor.functional.hooked_model import evaluating, row_slices, z_name

Replacement = Literal["zero", "mean", "donor"]
DonorTokens = Callable[[Tensor], Tensor]
"""Tokens [n, pos] to those of each row's donor, [n, pos]."""

PARTS_OF_A_HEAD = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")


@dataclass(frozen=True)
class Clamp:
    """What replaces the `z` of some heads.

    Attributes:
        heads: which.
        mode: `zero`; `mean`, over the rows of the pass, position by position; or `donor`, what the same model's head
            has on the donor's tokens. The replacement carries gradients too.
        share: how much of `z` is replaced, in (0, 1].
        donor_tokens: says who the donors are; needed for `donor`.
    """

    heads: HeadSet
    mode: Replacement
    share: float = 1.0
    donor_tokens: DonorTokens | None = None

    def check(self, model: Any) -> None:
        """Make sure that passes through `model` can be clamped so.

        Raises:
            ValueError: the mode, a head, the donor or the hooks are missing.
        """
        if self.mode not in get_args(Replacement):
            raise ValueError(f"mode is {self.mode!r}: choose one of {', '.join(get_args(Replacement))}.")
        if (self.mode == "donor") != (self.donor_tokens is not None):
            raise ValueError("donor_tokens goes with the mode donor, and only with that one.")
        require_heads(model, self.heads)
        hook_points = getattr(model, "hook_dict", {})
        missing = [name for head in self.heads if (name := z_name(head.layer)) not in hook_points]
        if missing:
            raise ValueError(f"{type(model).__name__} has no {missing[0]} in its hook_dict: nothing would be clamped.")
        if self.mode == "donor" and not isinstance(getattr(model, "embed", None), torch.nn.Module):
            raise ValueError(f"{type(model).__name__} has no module `embed`, where the tokens of a pass are read.")

    def share_of_rows(self, w_o: Tensor, n_heads: int) -> Tensor:
        """How much is replaced of what each row of `w_o` [head * d_head, d_model] reads, [head * d_head]."""
        share = w_o.new_zeros(n_heads, len(w_o) // n_heads)
        share[[head.head for head in self.heads]] = self.share
        return share.flatten()


def require_heads(model: Any, heads: HeadSet) -> None:
    """Make sure that `model` has these heads.

    Raises:
        ValueError: naming the first that is missing.
    """
    there = all_heads(model)
    for head in heads:
        if head not in there:
            raise ValueError(
                f"{head_name(*head)} does not exist; the model has {', '.join(head_name(*h) for h in there)}."
            )


def head_parameters(model: Any, heads: HeadSet) -> list[Tensor]:
    """Each head's own parameters, as views: W_Q, W_K, W_V, W_O, b_Q, b_K and b_V. b_O belongs to no head.

    Raises:
        ValueError: the model does not keep a head's parameters in one place.
    """
    views: list[Tensor] = []
    for layer, head in heads:
        for name in PARTS_OF_A_HEAD:
            parameter = getattr(model.blocks[layer].attn, name, None)
            if not isinstance(parameter, torch.nn.Parameter) or len(parameter) != model.cfg.n_heads:
                raise ValueError(
                    f"blocks.{layer}.attn.{name} of {type(model).__name__} is no parameter with a row a head."
                )
            views.append(parameter.detach()[head])
    return views


class ActiveClamp:
    """A clamp that acts on a model right now.

    Attributes:
        folds: whether the last-position form can do the same without hooks.
        was_used: whether any pass has been clamped.
        handles: the hook points that are clamped, each with TransformerLens's handle of the hook.
        at_embed: PyTorch's handle of the hook that runs the donors; None without donors.
        means: each layer's mean `z`, if it was taken beforehand.
    """

    def __init__(self, model: Any, clamp: Clamp, means: dict[int, Tensor] | None) -> None:
        self.clamp = clamp
        self.folds = means is None and not (clamp.mode == "donor" and clamp.share < 1)
        self.was_used = False
        self.handles: list[Any] = []
        self.means = means
        self.at_embed: Any = None
        self._model = model
        self._donor_z: dict[int, Tensor] = {}
        self._reads_donor = False

    def add_hooks(self) -> None:
        """Let every pass through the model's hooks be clamped."""
        for layer in sorted({head.layer for head in self.clamp.heads}):
            point = self._model.hook_dict[z_name(layer)]
            heads = [head.head for head in self.clamp.heads if head.layer == layer]
            point.add_hook(partial(self._replace, layer=layer, heads=heads), is_permanent=True)
            self.handles.append((point, point.fwd_hooks[-1]))
        if self.clamp.mode == "donor":
            self.at_embed = self._model.embed.register_forward_pre_hook(self._run_donor, with_kwargs=True)

    @property
    def hook_ids(self) -> set[int]:
        """The ids of its hooks, as PyTorch's handles have them."""
        at_embed = [self.at_embed.id] if self.at_embed is not None else []
        return {*at_embed, *(handle.hook.id for _, handle in self.handles)}

    def remove_hooks(self) -> None:
        """Leave the model as it was."""
        for point, handle in self.handles:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
        if self.at_embed is not None:
            self.at_embed.remove()

    def _run_donor(self, embed: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """As a pass begins, run its donors through the same model, unclamped, and keep what the heads have there."""
        if self._reads_donor:
            return
        tokens = args[0] if args else next(iter(kwargs.values()))
        assert self.clamp.donor_tokens is not None  # `Clamp.check`
        self._reads_donor = True
        try:
            self._model(self.clamp.donor_tokens(tokens))
        finally:
            self._reads_donor = False

    def _replace(self, z: Tensor, hook: Any, layer: int, heads: list[int]) -> Tensor | None:
        """`z` [n, pos, head, d_head] with the clamped heads replaced."""
        own = z[:, :, heads]
        if self._reads_donor:
            self._donor_z[layer] = own
            return None
        self.was_used = True
        if self.clamp.mode == "donor":
            new = self._donor_z.pop(layer)
        elif self.clamp.mode == "zero":
            new = torch.zeros_like(own)
        elif self.means is not None:
            new = self.means[layer][:, :, heads].to(own).expand_as(own)
        else:
            wide = torch.promote_types(own.dtype, torch.float32)
            new = own.mean(0, keepdim=True, dtype=wide).to(own.dtype).expand_as(own)
        z = z.clone()
        z[:, :, heads] = torch.lerp(own, new, self.clamp.share)
        return z


_ACTIVE: WeakKeyDictionary[Any, ActiveClamp] = WeakKeyDictionary()


@contextmanager
def clamped(model: Any, clamp: Clamp, mean_of: Tensor | None = None) -> Iterator[ActiveClamp]:
    """Clamp every pass through `model` inside.

    Args:
        model: a hooked model for which `clamp.check(model)` passes.
        clamp: what to replace.
        mean_of: tokens [n, pos] over which a `mean` is taken now, once, without gradients. None: each pass has the mean
            of its own rows.

    Raises:
        ValueError: `model` is clamped already.
    """
    if model in _ACTIVE:
        raise ValueError("the model is clamped already; name all heads in one clamp.")
    means = _mean_z(model, clamp, mean_of) if clamp.mode == "mean" and mean_of is not None else None
    active = ActiveClamp(model, clamp, means)
    active.add_hooks()
    _ACTIVE[model] = active
    try:
        yield active
    finally:
        del _ACTIVE[model]
        active.remove_hooks()


def folded_clamp(model: Any) -> Clamp | None:
    """The clamp that the last-position form has to fold in now; None if there is none."""
    active = _ACTIVE.get(model)
    if active is None:
        return None
    active.was_used = True
    return active.clamp


def folded_donor(model: Any) -> Clamp | None:
    """The same if it is a `donor` clamp, which a layout of tokens depends on."""
    active = _ACTIVE.get(model)
    return active.clamp if active is not None and active.clamp.mode == "donor" else None


def hooks_that_fold(model: Any) -> set[int]:
    """The ids of the hooks that the last-position form needs not mind, since it folds the clamp."""
    active = _ACTIVE.get(model)
    return active.hook_ids if active is not None and active.folds else set()


def hooks_per_row(model: Any) -> set[int]:
    """The ids of the hooks of a clamp that acts now, if it does the same to an example whatever else is in its pass."""
    active = _ACTIVE.get(model)
    return set() if active is None or (active.clamp.mode == "mean" and active.means is None) else active.hook_ids


def _mean_z(model: Any, clamp: Clamp, tokens: Tensor) -> dict[int, Tensor]:
    """Each clamped layer's mean `z` over the rows of `tokens`, [1, pos, head, d_head]."""
    names = {head.layer: z_name(head.layer) for head in clamp.heads}
    sums: dict[int, Tensor] = {}
    with evaluating(model):
        for rows in row_slices(len(tokens)):
            cache = model.run_with_cache(tokens[rows], names_filter=list(names.values()))[1]
            for layer, name in names.items():
                sums[layer] = sums.get(layer, 0.0) + cache[name].double().sum(0, keepdim=True)
    return {layer: total / len(tokens) for layer, total in sums.items()}
