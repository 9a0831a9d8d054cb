"""One set of weights, taken apart: ``python -m lit_backdoor analyze``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from torch import Tensor

from lit_backdoor.datamodule import sufficiency_probe, task_probes
from lit_backdoor.functional import (
    Ablation,
    HeadAttribution,
    HeadSet,
    PatchingResult,
    Probe,
    RuleHeads,
    ShapleyResult,
    attribute_heads,
    cache_probes,
    default_head_sets,
    logit_parts,
    mean_attention,
    patch_heads,
    shapley_values,
    smallest_knockout_set,
)
from lit_backdoor.task import Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOLERANCE = 0.01
"""How far above chance an accuracy still counts as chance, for the smallest set of heads."""


@dataclass(frozen=True)
class Analysis:
    """Everything that :func:`analyze` measures, by the name of the probe.

    Attributes:
        task: what the model was trained on.
        step: optimizer steps that made the weights.
        attribution: direct logit attribution of every head, by rule.
        parts: mean direct contribution of every part of the model, by rule; their sum is the mean logit of the answer.
        patching: all sets of heads, by ablation.
        shapley: of the recipient's and the donor's accuracy and of the logit difference, ``resample`` ablation.
        smallest: the smallest set whose patching takes the recipient's accuracy down to chance.
        chance: share of the examples on which both runs want the same answer: what is left of the recipient's accuracy
            when only the donor's answers come out.
        attention: mean attention from the last position, [layer, head, pos].
    """

    task: Task
    step: int
    attribution: Mapping[str, Sequence[HeadAttribution]]
    parts: Mapping[str, Mapping[str, float]]
    patching: Mapping[str, Mapping[Ablation, Sequence[PatchingResult]]]
    shapley: Mapping[str, Mapping[str, ShapleyResult]]
    smallest: Mapping[str, HeadSet | None]
    chance: Mapping[str, float]
    attention: Mapping[str, Tensor]


def analyze(model: "HookedTransformer", task: Task, step: int) -> Analysis:
    """Attribution, patching of all sets of heads in both directions, Shapley values and attention."""
    probes = task_probes(task)
    caches = cache_probes(model, *probes.values())
    sets = default_head_sets(model.cfg.n_layers, model.cfg.n_heads)
    complete = len(sets) == 2 ** (model.cfg.n_layers * model.cfg.n_heads)
    patching: dict[str, dict[Ablation, Sequence[PatchingResult]]] = {
        name: {ablation: patch_heads(model, probe, sets, ablation, caches) for ablation in get_args(Ablation)}
        for name, probe in probes.items()
    }
    results = {name: by_ablation["resample"] for name, by_ablation in patching.items()}
    chance = {name: 1 - probe.answers_differ.double().mean().item() for name, probe in probes.items()}
    return Analysis(
        task=task,
        step=step,
        attribution={name: attribute_heads(model, probes[name], caches) for name in task.rule_names},
        parts={name: _mean_parts(model, probes[name]) for name in task.rule_names},
        patching=patching,
        shapley={
            name: {
                f"{found[0].recipient}_accuracy": shapley_values({one.heads: one.recipient_accuracy for one in found}),
                f"{found[0].donor}_accuracy": shapley_values({one.heads: one.donor_accuracy for one in found}),
                "logit_diff": shapley_values({one.heads: one.logit_diff for one in found}),
            }
            for name, found in results.items()
            if complete
        },
        smallest={
            name: smallest_knockout_set({one.heads: one.recipient_accuracy for one in found}, chance[name], TOLERANCE)
            for name, found in results.items()
            if complete
        },
        chance=chance,
        attention={
            probe.recipient: mean_attention(model, probe.recipient_tokens, probe.position) for probe in probes.values()
        },
    )


def rule_heads(analysis: Analysis) -> dict[str, RuleHeads]:
    """Which heads serve each rule beside the first; empty where not all sets of heads were patched."""
    return {
        rule: RuleHeads(
            needs=analysis.shapley[rule][f"{rule}_accuracy"],
            suffices=analysis.shapley[sufficiency_probe(index)][f"{rule}_accuracy"],
            smallest=analysis.smallest[rule],
        )
        for index, rule in enumerate(analysis.task.rule_names)
        if index > 0 and rule in analysis.shapley
    }


def _mean_parts(model: "HookedTransformer", probe: Probe) -> dict[str, float]:
    parts = logit_parts(model, probe)
    named = dict(zip(parts.labels, parts.values.double().mean(dim=1).tolist(), strict=True))
    return named | {"sum = mean logit": parts.logit.double().mean().item()}
