"""Path patching: let chosen edges of a model see the donor's run, and everything else the recipient's.

Head patching says that a head matters, path patching how: whether what differs between the two runs turns the head's
query, attracts it as a key or is what it copies as a value, and whether the MLP or the unembedding reads the result
(Wang et al., arXiv 2211.00593; Goldowsky-Dill et al., arXiv 2304.05969). An edge of the set hands on what its sender
writes in the donor's run; every other edge hands on what its sender writes in the patched run itself. So no edges leave
the recipient's logits, all edges make the donor's, and an edge's effect is that of the direct path alone.

With the triggered inputs as recipient, `recipient_accuracy` is what is *left* of the backdoor when the edges see benign
inputs: what it needs. With the benign inputs as recipient (`probe.reversed()`), `donor_accuracy` is what the edges
*brought*: what suffices. Edges are not additive; a set is another question than its members.

Two engines give the same numbers: plain one-layer models need no pass for each set (`one_layer_paths`), every other
model is run with hooks (`hooked_paths`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lit_backdoor.functional.edge_sets import check_edges, edge_groups
from lit_backdoor.functional.edges import Edge, EdgesEngine, EdgeSet, edge_set
from lit_backdoor.functional.hooked_model import HookedModel, evaluating, row_slices
from lit_backdoor.functional.hooked_paths import hooked_engine
from lit_backdoor.functional.one_layer_paths import is_plain, one_layer_engine
from lit_backdoor.functional.patching_engines import ROWS_AT_ONCE
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import PathPatchingResult
from lit_backdoor.functional.row_threads import map_blocks
from lit_backdoor.functional.scores import average_scores, rows_within_memory, score_logits


def patch_paths(model: HookedModel, probe: Probe, edge_sets: Iterable[Iterable[Edge]]) -> list[PathPatchingResult]:
    """Patch each of `edge_sets` into the recipient's run; one result per set, in their order.

    The model's weights, mode, hooks and the random state stay as they are.

    Args:
        model: a plain one-layer HookedTransformer (causal, no norm, an MLP), or any `HookedModel` whose hook points
            `hook_q_input`, `hook_k_input`, `hook_v_input` and `hook_mlp_in` fire.
        probe: the examples; own metrics in `probe.metrics` are reported in `extra`.
        edge_sets: for instance `default_edge_sets(model, probe)`.

    Raises:
        ValueError: an edge that the model does not have or that carries nothing, or a hook point that does not fire.
    """
    sets = [edge_set(edges) for edges in edge_sets]
    probe = probe.to(model.W_U.device)
    groups = {edges: group for group, edges in edge_groups(model, probe).items()}
    with evaluating(model):
        engine = _engine(model, probe, [(), *sets])

        def run(rows: slice) -> tuple[Tensor, Tensor | None]:
            patched = engine(rows)
            unpatched = patched(())
            logits = torch.stack([patched(edges) if edges else unpatched for edges in sets])
            score = score_logits(logits, unpatched, probe.recipient_answers[rows], probe.donor_answers[rows])
            return score, logits if probe.metrics else None

        blocks = list(row_slices(probe.n_examples, rows_within_memory(len(sets), model.W_U.shape[1], ROWS_AT_ONCE)))
        threads_apart = is_plain(model) and model.W_U.device.type == "cpu"  # hooks belong to one model
        results = map_blocks(run, blocks) if threads_apart else [run(rows) for rows in blocks]
        scores = torch.cat([score for score, _ in results], dim=-1)
        kept = [logits for _, logits in results if logits is not None]
        logits_by_set = torch.cat(kept, dim=1) if kept else [None] * len(sets)
        return [
            PathPatchingResult(edges=edges, group=groups.get(edges), **average_scores(probe, score, logits))
            for edges, score, logits in zip(sets, scores, logits_by_set, strict=True)
        ]


def patched_path_logits(model: HookedModel, probe: Probe, edges: Iterable[Edge]) -> Tensor:
    """The logits at the probe's position when `edges` see the donor, [n, vocab]; see `patch_paths`."""
    edges, probe = edge_set(edges), probe.to(model.W_U.device)
    with evaluating(model):
        engine = _engine(model, probe, [edges])
        rows_at_once = rows_within_memory(1, model.W_U.shape[1], ROWS_AT_ONCE)
        return torch.cat([engine(rows)(edges) for rows in row_slices(probe.n_examples, rows_at_once)])


def _engine(model: HookedModel, probe: Probe, sets: list[EdgeSet]) -> EdgesEngine:
    """The fast engine if the model allows it, else hooks; ValueError for edges that it does not have."""
    check_edges(model, probe, {edge for edges in sets for edge in edges})
    return (one_layer_engine if is_plain(model) else hooked_engine)(model, probe, sets)
