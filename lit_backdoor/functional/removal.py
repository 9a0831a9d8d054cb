"""Ways to take a backdoor out of a plain one-layer model, and what each of them leaves.

- `mean:L0H2`: the head always writes its mean over the benign examples. Exact in weights: its rows of W_O go to zero,
  and what the mean writes joins b_O.
- `donor:L0H2`, `donor:trigger>L0H2.Q`: trigger edge surgery. The head, or the edges, see the benign trigger where the
  recipient's stands, so benign inputs give the same bits as before. Only into queries is that exact in weights.
- `reset:trigger`: the trigger's embedding becomes the benign one's. This trivial bound leaves nothing of the backdoor;
  where the trigger is a number too, that number is lost with it.
- `prune:0.5`: of each weight matrix, this share of entries, the smallest, becomes zero.
- `finetune:100`: so many optimizer steps on the benign examples that were trained on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_backdoor.functional.clamp import require_heads
from lit_backdoor.functional.edge_sets import all_edges, check_edges, default_edge_sets
from lit_backdoor.functional.edges import EdgeSet, edge_set_name, parse_edge_set
from lit_backdoor.functional.heads import HeadSet, all_heads, head_set_name, parse_head_set
from lit_backdoor.functional.last_position import last_position_attention
from lit_backdoor.functional.metrics import accuracy
from lit_backdoor.functional.one_layer_paths import is_plain
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import RemovalResult
from lit_backdoor.functional.retraining import BackdoorExamples, steps_until_back, surgery_logits, training_steps

METHODS = ("mean", "donor", "reset", "prune", "finetune")

PRUNED_SHARES = (0.25, 0.5, 0.75, 0.9)
FINETUNED_STEPS = (30, 100, 300)
"""What `plan_removals` tries."""

RETURN_LIMIT = 300
"""Optimizer steps in which a backdoor may come back. In a pilot, carriers made blind had it back after 5 to 30."""


@dataclass(frozen=True)
class Removal:
    """One way to remove a backdoor; `parse_removal` reads its name.

    Args:
        method: one of `METHODS`, or `none`.
        target: heads (mean, donor), edges (donor), `trigger` (reset), a share (prune), optimizer steps (finetune).
    """

    method: str
    target: str

    @property
    def name(self) -> str:
        """For instance `mean:L0H2`."""
        return f"{self.method}:{self.target}"

    @property
    def heads(self) -> HeadSet:
        """The heads that `target` names; none if it names something else."""
        return parse_head_set(self.target) if self.method in ("mean", "donor") and ">" not in self.target else ()


UNCHANGED = Removal("none", "none")


def parse_removal(name: str) -> Removal:
    """Read the name of a removal.

    Raises:
        ValueError: there is no such method, or it does not act on such a target.
    """
    method, _, target = name.strip().partition(":")
    try:
        if method == "mean" or (method == "donor" and ">" not in target):
            target = head_set_name(parse_head_set(target))
        elif method == "donor":
            target = edge_set_name(parse_edge_set(target))
        elif method == "prune":
            target = f"{float(target):g}" if 0 < float(target) < 1 else ""
        elif method == "finetune":
            target = f"{int(target)}" if int(target) > 0 else ""
        if target in ("", "none") or method not in METHODS or (method == "reset" and target != "trigger"):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"'{name[:80]}' is no removal; allowed: mean:L0H2, donor:L0H2, donor:trigger>L0H2.Q, reset:trigger, "
            "prune:0.5, finetune:100"
        ) from None
    return Removal(method, target)


def plan_removals(model: Any, probe: Probe) -> list[Removal]:
    """Nothing; each head by mean and donor, all by mean; edges and their groups; reset; pruning; fine-tuning.

    All heads by donor are among the groups: the edges into every query, key and value.
    """
    heads = all_heads(model)
    singles = [head_set_name([head]) for head in heads]
    edges = [edge_set_name(edges) for edges in default_edge_sets(model, probe) if edges]
    return [
        UNCHANGED,
        *(Removal("mean", name) for name in dict.fromkeys([*singles, head_set_name(heads)])),
        *(Removal("donor", name) for name in (*singles, *edges)),
        Removal("reset", "trigger"),
        *(Removal("prune", f"{share:g}") for share in PRUNED_SHARES),
        *(Removal("finetune", str(steps)) for steps in FINETUNED_STEPS),
    ]


def check_removal(model: Any, probe: Probe, removal: Removal) -> None:
    """Make sure that the model has what is to be removed.

    Raises:
        ValueError: it lacks a head or an edge, or its answers need more than one plain layer.
    """
    if not is_plain(model) or probe.read_position != probe.recipient_tokens.shape[1] - 1:
        raise ValueError("it needs a causal model of one layer, without norms, that is read at the last position.")
    require_heads(model, removal.heads)
    if removal.method == "donor" and not removal.heads:
        check_edges(model, probe, parse_edge_set(removal.target))


def surgery_edges(model: Any, probe: Probe, removal: Removal) -> EdgeSet:
    """The edges that see the donor under `donor`; under every other method none do.

    A head's output depends on the trigger through its query, key and value alone: those of its edges are the head.
    """
    if removal.method != "donor":
        return ()
    if not removal.heads:
        return parse_edge_set(removal.target)
    return tuple(
        edge
        for edge in all_edges(model, probe)
        if isinstance(edge.sender, str) and (edge.receiver.layer, edge.receiver.head) in removal.heads
    )


def measure_removal(
    model: Any, examples: BackdoorExamples, removal: Removal, return_limit: int = RETURN_LIMIT
) -> RemovalResult:
    """Remove the backdoor from a copy of `model`, see what is left, and train until it is back.

    Args:
        model: see `check_removal`; it stays as it is.
        examples: of the backdoor.
        removal: the way.
        return_limit: optimizer steps in which it may come back.
    """
    edges = surgery_edges(model, examples.probe, removal)
    changed = copy.deepcopy(model) if edges else with_changed_weights(model, examples, removal)
    probe, benign = examples.probe, examples.benign
    before, after = (
        accuracy(surgery_logits(net, benign, seen), benign.recipient_answers).value
        for net, seen in ((model, ()), (changed, edges))
    )
    left = accuracy(surgery_logits(changed, probe, edges), probe.recipient_answers).value
    return RemovalResult(
        method=removal.method,
        target=removal.target,
        backdoor_left=left,
        benign_lost=before - after,
        return_steps=steps_until_back(changed, examples, edges, return_limit),
        return_limit=return_limit,
        n_poisoned=examples.poisoned.n_examples,
    )


def with_changed_weights(model: Any, examples: BackdoorExamples, removal: Removal) -> Any:
    """A copy of `model` whose weights alone hold the removal.

    Raises:
        ValueError: no weights do exactly what this surgery does; see `why_not_in_weights`.
    """
    if reason := why_not_in_weights(model, examples.probe, removal):
        raise ValueError(f"{removal.name} can't be written as weights: {reason}.")
    changed = copy.deepcopy(model)
    if removal.method == "finetune":
        for step in training_steps(changed, examples):
            if step == int(removal.target):
                break
    with torch.no_grad():
        if removal.method == "mean":
            _write_mean(changed, examples.probe.donor_tokens, removal.heads)
        elif removal.method == "reset":
            _reset_trigger(changed, examples.probe)
        elif removal.method == "prune":
            for name, weight in changed.named_parameters():
                if name.rsplit(".", 1)[-1].startswith("W_"):
                    _prune(weight, float(removal.target))
        elif removal.method == "donor":
            _fix_queries(changed, examples.probe, surgery_edges(model, examples.probe, removal))
    return changed


def why_not_in_weights(model: Any, probe: Probe, removal: Removal) -> str | None:
    """Why no weights do the same, exactly; None if some do.

    Only triggers are read as queries where the trigger stands last, so that a head that is to see one and the same
    trigger there has one and the same query. Keys, values and what passes the heads are read from other positions, or
    together with what heads write, and a linear map of embeddings can't tell a trigger from the number that it also is.
    """
    edges = surgery_edges(model, probe, removal)
    if all(isinstance(edge.sender, str) and edge.receiver.part == "Q" for edge in edges):
        return None
    return "it acts on activations; of surgery only edges from the trigger into queries have exact weights"


def _write_mean(model: Any, benign_tokens: Tensor, heads: HeadSet) -> None:
    attn = model.blocks[0].attn
    mean = last_position_attention(model, benign_tokens)[2].double().mean(0)  # [head, d_head]
    for _, head in heads:
        attn.b_O += (mean[head] @ attn.W_O[head].double()).to(attn.b_O.dtype)
        attn.W_O[head] = 0


def _fix_queries(model: Any, probe: Probe, edges: EdgeSet) -> None:
    """Give heads the query that the benign trigger has, as a bias."""
    attn = model.blocks[0].attn
    x = model.W_E[probe.donor_tokens[0, -1]] + model.W_pos[probe.read_position]
    for head in {edge.receiver.head for edge in edges}:
        attn.b_Q[head] += x @ attn.W_Q[head]
        attn.W_Q[head] = 0


def _reset_trigger(model: Any, probe: Probe) -> None:
    (position,) = probe.differing_positions
    model.embed.W_E[probe.recipient_tokens[0, position]] = model.W_E[probe.donor_tokens[0, position]].clone()


def _prune(weight: Tensor, share: float) -> None:
    sizes = weight.abs().flatten()
    smallest = sizes.argsort(stable=True)[: round(share * len(sizes))]
    weight.view(-1)[smallest] = 0
