"""The contract with a model: what `lit_backdoor.functional` needs of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from lit_backdoor.functional.stopping import check_stop

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


def z_name(layer: int) -> str:
    """The hook on a layer's attention-weighted values, [n, pos, head, d_head]."""
    return f"blocks.{layer}.attn.hook_z"


def changes_nothing(hook: Hook) -> Hook:
    """Mark a forward hook that returns what the module returns, computed in another way: it is passed over."""
    hook.changes_nothing = True  # type: ignore[attr-defined]
    return hook


def carries_hooks(model: HookedModel, but: Collection[int] = ()) -> bool:
    """Whether hooks that somebody added change, or see, what a module of the model returns.

    The hooks with which a TransformerBridge wires its own hook points in its first pass are not somebody's.

    Args:
        model: any model.
        but: ids, as PyTorch's handles have them, of hooks that do not count.
    """
    return isinstance(model, torch.nn.Module) and any(is_hooked(module, but) for module in model.modules())


def is_hooked(module: torch.nn.Module, but: Collection[int] = ()) -> bool:
    """Whether such hooks are on this one module, whatever is inside it; see `carries_hooks`."""
    if not (module._forward_hooks or module._forward_pre_hooks):
        return False
    return not all(
        number in but
        or getattr(hook, "changes_nothing", False)
        or str(hook.__module__).startswith("transformer_lens.model_bridge.")
        for number, hook in (*module._forward_hooks.items(), *module._forward_pre_hooks.items())
    )


def has_own_forward(model: HookedModel) -> bool:
    """Whether the forward pass of `model` is another than that of TransformerLens's HookedTransformer."""
    forward = getattr(type(model), "forward", None)
    return getattr(forward, "__module__", None) != "transformer_lens.HookedTransformer"


def row_slices(n: int, rows: int = 512) -> Iterator[slice]:
    """`n` examples in slices that keep memory small."""
    for start in range(0, n, rows):
        check_stop()
        yield slice(start, min(start + rows, n))


@contextmanager
def evaluating(model: HookedModel) -> Iterator[None]:
    """No gradients, no dropout and nothing compiled inside; every submodule's mode is afterwards what it was before."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad(), _eager():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _eager() -> AbstractContextManager[Any]:
    """Run what is compiled uncompiled: it passes hooks by that came after its first call.

    What compiles imports ``torch._dynamo``. If nobody has yet, nothing is compiled, and that import takes seconds.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def why_rounded(model: HookedModel) -> str | None:
    """Why a pass through `model` rounds so much that only its own operations give its numbers; None in full precision.

    Folding weights, or adding up heads in another order, changes no more than the last bits of float32. In fewer bits
    that can be another answer.
    """
    kind = model.W_U.dtype
    if kind.itemsize < 4:
        return f"its weights are {str(kind).removeprefix('torch.')}"
    device = model.W_U.device.type
    return "it runs under autocast" if torch.is_autocast_enabled(device) else None
