"""One set of weights, taken apart: ``python -m lit_backdoor analyze``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from lit_backdoor.datamodule import sufficiency_probe, task_probes, task_rules
from lit_backdoor.functional import (
    Ablation,
    HeadAttribution,
    HeadCache,
    HeadProgress,
    HeadSet,
    HeadSpecificity,
    NeuronResult,
    PatchingResult,
    PathPatchingResult,
    PositionAttention,
    Probe,
    RemovalResult,
    RuleHeads,
    ShapleyResult,
    accuracy_floor,
    attention_by_position,
    attribute_heads,
    cache_probes,
    default_edge_sets,
    default_head_sets,
    head_specificity,
    logit_parts,
    patch_heads,
    patch_neurons,
    patch_paths,
    rule_progress,
    shapley_values,
    smallest_knockout_set,
    why_not_linear,
)
from lit_backdoor.functional.hooked_paths import with_all_inputs_hooked
from lit_backdoor.functional.one_layer_paths import is_plain
from lit_backdoor.task import Examples, Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOLERANCE = 0.01
"""How far above chance an accuracy still counts as chance, for the smallest set of heads."""

PATH_EXAMPLES = 512
"""Of models that need a pass for each set of edges, paths are measured on so many examples."""


@dataclass(frozen=True, eq=False)
class ProbeAnalysis:
    """Everything that :func:`analyze` measures on one probe.

    Attributes:
        recipient: name of the run that is patched.
        donor: name of the run that gives its activations.
        attribution: direct logit attribution of every head.
        parts: mean direct contribution of every part of the model; their sum is the mean logit of the answer.
        patching: all sets of heads, by ablation.
        shapley: of the recipient's and the donor's accuracy and of the logit difference, ``resample`` ablation; empty
            where not all sets of heads were patched.
        smallest: the smallest set whose patching takes the recipient's accuracy down to chance; None if there is none.
        chance: share of the examples on which both runs want the same answer: what is left of the recipient's accuracy
            when only the donor's answers come out.
        paths: sets of edges.
        attention: where every head looks, in both runs.
        specificity: what every head costs either rule.
        neurons: which of the MLP's neurons carry the rule; None for models in which that is not exact.
    """

    recipient: str
    donor: str
    attribution: Sequence[HeadAttribution]
    parts: Mapping[str, float]
    patching: Mapping[Ablation, Sequence[PatchingResult]]
    shapley: Mapping[str, ShapleyResult]
    smallest: HeadSet | None
    chance: float
    paths: Sequence[PathPatchingResult]
    attention: Sequence[PositionAttention]
    specificity: Sequence[HeadSpecificity]
    neurons: NeuronResult | None


@dataclass(frozen=True, eq=False)
class Analysis:
    """Everything that :func:`analyze` measures.

    Attributes:
        task: what the model was trained on.
        step: optimizer steps that made the weights.
        probes: by name: what each rule needs (``backdoor``), and what suffices for it (``benign``).
        progress: waves and gradients, by rule and head.
        removal: what each way to remove a backdoor leaves, by backdoor; empty unless it was asked for.
    """

    task: Task
    step: int
    probes: Mapping[str, ProbeAnalysis]
    progress: Mapping[str, Sequence[HeadProgress]]
    removal: Mapping[str, Sequence[RemovalResult]] = field(default_factory=dict)

    @property
    def of_rules(self) -> dict[str, ProbeAnalysis]:
        """The probe of each rule, by the rule's name."""
        return {name: self.probes[name] for name in self.task.rule_names}

    @property
    def of_backdoors(self) -> dict[str, ProbeAnalysis]:
        """The probe of each rule beside the first."""
        return {name: self.probes[name] for name in self.task.rule_names[1:]}


def analyze(model: "HookedTransformer", task: Task, step: int, train: Examples) -> Analysis:
    """Attribution, patching of heads, paths and neurons in both directions, Shapley values, attention, and waves.

    Args:
        model: trained on ``task``.
        task: gives the probes.
        step: optimizer steps that made the weights.
        train: the examples that it was trained on.
    """
    probes = task_probes(task)
    caches = cache_probes(model, *probes.values())
    return Analysis(
        task=task,
        step=step,
        probes={name: _analyze_probe(model, probe, caches) for name, probe in probes.items()},
        progress=rule_progress(model, task_rules(task, train)),
    )


def rule_heads(analysis: Analysis) -> dict[str, RuleHeads]:
    """Which heads serve each rule beside the first; empty where not all sets of heads were patched."""
    return {
        rule: RuleHeads(
            needs=analysis.probes[rule].shapley[f"{rule}_accuracy"],
            suffices=analysis.probes[sufficiency_probe(index)].shapley[f"{rule}_accuracy"],
            smallest=analysis.probes[rule].smallest,
        )
        for index, rule in enumerate(analysis.task.rule_names)
        if index > 0 and analysis.probes[rule].shapley
    }


def _analyze_probe(model: "HookedTransformer", probe: Probe, caches: Sequence[HeadCache]) -> ProbeAnalysis:
    sets = default_head_sets(model.cfg.n_layers, model.cfg.n_heads)
    patching: dict[Ablation, Sequence[PatchingResult]] = {
        ablation: patch_heads(model, probe, sets, ablation, caches) for ablation in get_args(Ablation)
    }
    resample, floor = patching["resample"], accuracy_floor(probe)
    left = {result.heads: result.recipient_accuracy for result in resample}
    complete = len(sets) == 2 ** (model.cfg.n_layers * model.cfg.n_heads)
    shapley = {
        f"{probe.recipient}_accuracy": left,
        f"{probe.donor}_accuracy": {result.heads: result.donor_accuracy for result in resample},
        "logit_diff": {result.heads: result.logit_diff for result in resample},
    }
    return ProbeAnalysis(
        recipient=probe.recipient,
        donor=probe.donor,
        attribution=attribute_heads(model, probe, caches),
        parts=_mean_parts(model, probe),
        patching=patching,
        shapley={metric: shapley_values(values) for metric, values in shapley.items()} if complete else {},
        smallest=smallest_knockout_set(left, floor, TOLERANCE) if complete else None,
        chance=floor,
        paths=_paths(model, probe),
        attention=attention_by_position(model, probe),
        specificity=head_specificity(model, probe, caches),
        neurons=None if why_not_linear(model) else patch_neurons(model, probe, caches),
    )


def _paths(model: "HookedTransformer", probe: Probe) -> list[PathPatchingResult]:
    with with_all_inputs_hooked(model):
        sample = probe if is_plain(model) else probe.sample(PATH_EXAMPLES)
        return patch_paths(model, sample, default_edge_sets(model, sample))


def _mean_parts(model: "HookedTransformer", probe: Probe) -> dict[str, float]:
    parts = logit_parts(model, probe)
    named = dict(zip(parts.labels, parts.values.double().mean(dim=1).tolist(), strict=True))
    return named | {"sum = mean logit": parts.logit.double().mean().item()}
