"""The contract with a model: what `lit_backdoor.functional` needs of it, and how its heads are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import index
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

Hook = TypeVar("Hook", bound=Callable[..., Any])


@runtime_checkable
class HookedModel(Protocol):
    """A transformer whose activations can be read and replaced.

    `transformer_lens.HookedTransformer` and `TransformerBridge` are such models; any other class that has
    these five members is one too, if its hook points bear TransformerLens's names. Patching needs
    `blocks.{layer}.attn.hook_z`, [n, pos, head, d_head]; what attribution needs too, `attribute_heads` says.
    """

    @property
    def cfg(self) -> Any:
        """Has `n_layers`, `n_heads`, `d_vocab` (tokens in) and `n_ctx`; for attribution `normalization_type` too, and
        `attn_only` if there are no MLPs."""

    @property
    def W_O(self) -> Tensor:
        """The heads' output weights, [layer, head, d_head, d_model]."""

    @property
    def W_U(self) -> Tensor:
        """The unembedding, [d_model, vocab]."""

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """`(tokens [n, pos], names_filter=[name, ...])` to `(logits [n, pos, vocab], {name: activation})`."""

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """`(tokens [n, pos], fwd_hooks=[(name, hook), ...])` to logits [n, pos, vocab]; what `hook(activation,
        hook=...)` returns, unless None, replaces the activation."""


class Head(NamedTuple):
    """One attention head, both numbers zero-based."""

    layer: int
    head: int


HeadSet = tuple[Head, ...]
"""Heads in ascending order, each at most once; `()` is "none"."""

Heads = str | Iterable[tuple[int, int] | str]
"""How a set of heads may be given: (layer, head) pairs or names such as `"L0H2"`, or a name of the whole set."""


def head_name(layer: int, head: int) -> str:
    """Name a head.

    >>> head_name(0, 2)
    'L0H2'
    """
    return f"L{layer}H{head}"


def head_set_name(heads: Iterable[tuple[int, int]]) -> str:
    """Name a set of heads, in ascending order.

    >>> head_set_name([(0, 2), (0, 0)])
    'L0H0+L0H2'
    >>> head_set_name([])
    'none'
    """
    return "+".join(head_name(*head) for head in head_set(heads)) or "none"


def parse_head_set(name: str) -> HeadSet:
    """Read what `head_name` and `head_set_name` wrote.

    >>> parse_head_set("L1H0+L0H2")
    (Head(layer=0, head=2), Head(layer=1, head=0))
    >>> parse_head_set("none")
    ()

    Raises:
        ValueError: `name` is neither "none" nor heads joined by "+".
    """
    if name == "none":
        return ()
    matches = [re.fullmatch(r"L(\d+)H(\d+)", part) for part in name.split("+")]
    if not all(matches):
        raise ValueError(f'{name!r} is not a set of heads: write "none", "L0H2" or "L0H0+L0H2".')
    return head_set((int(m[1]), int(m[2])) for m in matches if m)


def head_set(heads: Heads) -> HeadSet:
    """Put heads in ascending order, each once.

    >>> head_set([(0, 2), "L0H0", (0, 2)])
    (Head(layer=0, head=0), Head(layer=0, head=2))

    Raises:
        ValueError: `heads` is no set of heads.
    """
    if isinstance(heads, str):
        return parse_head_set(heads)
    try:
        given = [parse_head_set(head) if isinstance(head, str) else [Head(*map(index, head))] for head in heads]
    except TypeError:  # a number where a pair belongs, or a pair of something else
        raise ValueError(
            f"{heads!r} is not a set of heads: give a list of (layer, head), such as [(0, 2)], or a name, such as "
            '"L0H2", "L0H0+L0H2" or "none".'
        ) from None
    return tuple(sorted({head for part in given for head in part}))


def all_heads(model: HookedModel) -> HeadSet:
    """All heads of all layers, layer by layer."""
    return tuple(Head(i, j) for i in range(model.cfg.n_layers) for j in range(model.cfg.n_heads))


def z_name(layer: int) -> str:
    """The hook on a layer's attention-weighted values, [n, pos, head, d_head]."""
    return f"blocks.{layer}.attn.hook_z"


def changes_nothing(hook: Hook) -> Hook:
    """Mark a forward hook that returns what the module returns, computed in another way: it is passed over."""
    hook.changes_nothing = True  # type: ignore[attr-defined]
    return hook


def carries_hooks(model: HookedModel) -> bool:
    """Whether hooks that somebody added change, or see, what a module of the model returns."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    hooks = (hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    return any(not getattr(hook, "changes_nothing", False) for hook in hooks)


def row_slices(n: int, rows: int = 512) -> Iterator[slice]:
    """`n` examples in slices that keep memory small."""
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


@contextmanager
def evaluating(model: HookedModel) -> Iterator[None]:
    """No gradients and no dropout inside; every submodule's mode is afterwards what it was before."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
