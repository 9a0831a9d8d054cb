"""Three ways to the same numbers: the logits of one probe with each of several sets of heads patched.

- `_one_layer`, for plain one-layer models (`one_layer.why_no_shortcut`): a sum, the MLP and the unembedding per set.
- `LayerByLayer`, for plain HookedTransformers (`layer_by_layer.not_layer_by_layer`): what passes have in common, once.
- `_whole_passes`, for every `HookedModel`: one pass per set, through its own `run_with_hooks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_backdoor.functional.ablation import check_ablation, replacement
from lit_backdoor.functional.heads import HeadSet
from lit_backdoor.functional.hooked_model import HookedModel, carries_hooks, z_name
from lit_backdoor.functional.layer_by_layer import LayerByLayer, not_layer_by_layer
from lit_backdoor.functional.one_layer import HeadCache, find_cache, readout, why_no_shortcut
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import Ablation

ROWS_AT_ONCE = 256
"""So many rows of a small model stay in a processor's cache."""


@dataclass(frozen=True)
class PatchingEngine:
    """How to patch.

    Args:
        logits: rows of the probe to the logits at its position, [set, rows, vocab].
        rows_at_once: so many rows are few enough for memory and enough for speed.
        in_threads: whether several threads may call it at a time.
    """

    logits: Callable[[slice], Tensor]
    rows_at_once: int
    in_threads: bool


@contextmanager
def patching_engine(
    model: HookedModel, probe: Probe, sets: Sequence[HeadSet], ablation: Ablation, caches: Sequence[HeadCache] = ()
) -> Iterator[PatchingEngine]:
    """The fastest engine that is exact for `model`.

    Args:
        model: as inside `evaluating`.
        probe: on the model's device.
        sets: the sets of heads, all different.
        ablation: what replaces the heads' `z`.
        caches: from `cache_probes`.

    Raises:
        ValueError: an unknown ablation.
    """
    check_ablation(ablation)
    if why_no_shortcut(model) is None:
        yield PatchingEngine(_one_layer(model, probe, sets, ablation, caches), ROWS_AT_ONCE, in_threads=True)
    elif not_layer_by_layer(model) is None:
        layers = LayerByLayer(model, probe, sets, ablation)
        with layers.hooked():
            yield PatchingEngine(layers.logits, layers.rows_at_once, in_threads=True)
    else:
        yield PatchingEngine(_whole_passes(model, probe, sets, ablation), ROWS_AT_ONCE, in_threads=False)


def _one_layer(
    model: Any, probe: Probe, sets: Sequence[HeadSet], ablation: Ablation, caches: Sequence[HeadCache]
) -> Callable[[slice], Tensor]:
    """Patch at the read position only: sum of heads, MLP and unembedding (see `one_layer`)."""
    own = find_cache(model, caches, probe.recipient_tokens, probe.position)
    donor = find_cache(model, caches, probe.donor_tokens, probe.position)
    given = replacement(lambda rows: [donor.z[rows]], probe.n_examples, ablation, probe.n_examples)
    read = readout(model)
    W_O, b_O = model.W_O[0] @ read.weight, model.blocks[0].attn.b_O @ read.weight  # [head, d_head, k], [k]

    def logits(rows: slice) -> Tensor:
        z = own.z[rows]
        unpatched = own.resid_pre[rows] @ read.weight + z.flatten(1) @ W_O.flatten(0, 1) + (b_O + read.bias)
        change = (given(rows)[0] - z).transpose(0, 1) @ W_O  # [head, rows, k]

        def patched(heads: HeadSet) -> Tensor:
            reads = unpatched.clone()
            for head in heads:
                reads += change[head.head]
            return read.finish(reads)

        return torch.stack([patched(heads) for heads in sets])

    return logits


def _whole_passes(
    model: HookedModel, probe: Probe, sets: Sequence[HeadSet], ablation: Ablation
) -> Callable[[slice], Tensor]:
    """Patch every position through the model's own `run_with_hooks`, several sets together where examples are few."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    names = [z_name(layer) for layer in range(n_layers)]
    # A hook of the user's may count on one row per example.
    may_stack = isinstance(model, torch.nn.Module) and not carries_hooks(model)
    patched = torch.tensor([[[(i, j) in heads for j in range(n_heads)] for i in range(n_layers)] for heads in sets])

    def donor_z(rows: slice) -> list[Tensor]:
        _, cache = model.run_with_cache(probe.donor_tokens[rows], names_filter=names)
        return [cache[name] for name in names]

    given = replacement(donor_z, probe.n_examples, ablation)

    def together(tokens: Tensor, zs: list[Tensor], patched: Tensor) -> Tensor:
        """The logits, [set, rows, vocab], of as many sets as there are in `patched` [set, layer, head]."""

        def patch(layer: int) -> tuple[str, Callable[..., Tensor]]:
            heads = patched[:, layer, None, None, :, None].to(tokens.device)

            def replace(z: Tensor, hook: Any) -> Tensor:  # [set * rows, pos, head, d_head]
                return torch.where(heads, zs[layer], z.unflatten(0, (len(patched), -1))).flatten(0, 1)

            return names[layer], replace

        hooks = [patch(layer) for layer in range(n_layers) if patched[:, layer].any()]
        logits = model.run_with_hooks(tokens.repeat(len(patched), 1), fwd_hooks=hooks)[:, probe.position]
        return logits.unflatten(0, (len(patched), -1))

    def logits(rows: slice) -> Tensor:
        tokens, zs = probe.recipient_tokens[rows], given(rows)
        sets_at_once = ROWS_AT_ONCE // len(tokens) if may_stack else 1
        return torch.cat([together(tokens, zs, part) for part in patched.split(sets_at_once)])

    return logits
