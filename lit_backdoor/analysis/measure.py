"""One set of weights, taken apart: ``python -m lit_backdoor analyze``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from lit_backdoor.analysis.probed_task import ProbedTask
from lit_backdoor.datamodule import sufficiency_probe
from lit_backdoor.functional import (
    Ablation,
    HeadAttribution,
    HeadCache,
    HeadProgress,
    HeadScores,
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
    shows_behaviour,
    smallest_knockout_set,
)
from lit_backdoor.functional.hooked_paths import with_all_inputs_hooked
from lit_backdoor.functional.one_layer_paths import is_plain

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOLERANCE = 0.01
"""How far above chance an accuracy still counts as chance, for the smallest set of heads."""

PATH_EXAMPLES = 512
"""Of models that need a pass for each set of edges, paths are measured on so many examples."""

SHAPE = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "attn_only", "n_ctx", "d_vocab", "d_vocab_out", "act_fn",
         "normalization_type", "attention_dir")  # fmt: skip
"""What describes a model: fields of its HookedTransformerConfig."""

Measured = TypeVar("Measured")


@dataclass(frozen=True, eq=False)
class ProbeAnalysis:
    """Everything that :func:`analyze` measures on one probe.

    Attributes:
        recipient: name of the run that is patched.
        donor: name of the run that gives its activations.
        positions: at which recipient and donor differ, from 0.
        attribution: direct logit attribution of every head.
        parts: mean direct contribution of every part of the model; their sum is the mean logit of the answer.
        patching: all sets of heads, by ablation.
        shapley: of the recipient's and the donor's accuracy and of the logit difference, ``resample`` ablation; empty
            where not all sets of heads were patched.
        shown: whether the model gives the recipient's answers, and that because of what makes recipient and donor
            differ; see :func:`~lit_backdoor.functional.shows_behaviour`.
        smallest: the smallest set whose patching takes the recipient's accuracy down to chance; None if there is none.
        chance: share of the examples on which both runs want the same answer: what is left of the recipient's accuracy
            when only the donor's answers come out.
        paths: sets of edges.
        attention: where every head looks, in both runs.
        specificity: what every head costs either rule.
        neurons: which of the MLP's neurons carry the rule; None for models in which that is not exact.
        not_measured: what is empty above, since it would not be exact or too much, and why.
    """

    recipient: str
    donor: str
    positions: Sequence[int]
    attribution: Sequence[HeadAttribution]
    parts: Mapping[str, float]
    patching: Mapping[Ablation, Sequence[PatchingResult]]
    shapley: Mapping[str, ShapleyResult]
    shown: bool
    smallest: HeadSet | None
    chance: float
    paths: Sequence[PathPatchingResult]
    attention: Sequence[PositionAttention]
    specificity: Sequence[HeadSpecificity]
    neurons: NeuronResult | None
    not_measured: Mapping[str, str]

    @property
    def absence(self) -> str:
        """What to say where the model does not show the recipient's behaviour; empty where it does."""
        if self.shown:
            return ""
        return (
            f"the model does not show {self.recipient}, or shows it in the {self.donor} run too: nothing is said to "
            "carry it"
        )

    @property
    def unpatched(self) -> PatchingResult:
        """The recipient's run as it is."""
        return next(result for result in self.patching["resample"] if not result.heads)


@dataclass(frozen=True, eq=False)
class Analysis:
    """Everything that :func:`analyze` measures.

    Attributes:
        title: what the model does.
        step: optimizer steps that made the weights; None if that is not known.
        model: its shape, by the names of ``SHAPE``.
        probes: by name. Of the paper's task: what each rule needs (``backdoor``), and what suffices for it
            (``benign``).
        progress: waves and gradients, by rule and head; empty for other tasks than the paper's, which have no rules.
        positions: what the positions of the examples are called; empty for their numbers.
        removal: what each way to remove a backdoor leaves, by backdoor; empty unless it was asked for.
    """

    title: str
    step: int | None
    model: Mapping[str, Any]
    probes: Mapping[str, ProbeAnalysis]
    progress: Mapping[str, Sequence[HeadProgress]]
    positions: Sequence[str]
    removal: Mapping[str, Sequence[RemovalResult]] = field(default_factory=dict)

    @property
    def of_rules(self) -> dict[str, ProbeAnalysis]:
        """The probe of each rule, by the rule's name; of a task without rules, all probes."""
        return {name: self.probes[name] for name in self.progress or self.probes}

    @property
    def of_backdoors(self) -> dict[str, ProbeAnalysis]:
        """The probe of each rule beside the first."""
        return {name: self.probes[name] for name in list(self.progress)[1:]}

    @property
    def asked(self) -> dict[str, ProbeAnalysis]:
        """The probes that ask what sets two behaviours apart: those of backdoors; of a task without rules, all."""
        return self.of_backdoors if self.progress else dict(self.probes)

    def label(self, probe: str) -> str:
        """What a title about a probe begins with: its name, unless recipient and donor are named after rules."""
        return "" if self.progress else f"{probe}: "


def analyze(model: "HookedTransformer", task: ProbedTask, step: int | None) -> Analysis:
    """Attribution, patching of heads, paths and neurons, Shapley values, attention, and of rules the waves.

    Args:
        model: the model.
        task: what to ask.
        step: optimizer steps that made the weights; None if that is not known.
    """
    caches = cache_probes(model, *task.probes.values())
    return Analysis(
        title=task.title,
        step=step,
        model=_shape(model),
        probes={name: _analyze_probe(model, probe, caches) for name, probe in task.probes.items()},
        progress=rule_progress(model, task.rules) if task.rules else {},
        positions=task.positions,
    )


def _shape(model: "HookedTransformer") -> dict[str, Any]:
    without = ("d_mlp", "act_fn") if model.cfg.attn_only else ()
    return {name: None if name in without else getattr(model.cfg, name) for name in SHAPE}


def rule_heads(analysis: Analysis) -> dict[str, RuleHeads]:
    """Which heads serve each rule beside the first; empty where not all sets of heads were patched."""
    return {
        rule: RuleHeads(
            needs=analysis.probes[rule].shapley[f"{rule}_accuracy"],
            suffices=analysis.probes[sufficiency_probe(index)].shapley[f"{rule}_accuracy"],
            smallest=analysis.probes[rule].smallest,
        )
        for index, rule in enumerate(analysis.progress)
        if index > 0 and analysis.probes[rule].shapley
    }


def _analyze_probe(model: "HookedTransformer", probe: Probe, caches: Sequence[HeadCache]) -> ProbeAnalysis:
    sets = default_head_sets(model.cfg.n_layers, model.cfg.n_heads)
    patching: dict[Ablation, Sequence[PatchingResult]] = {
        ablation: patch_heads(model, probe, sets, ablation, caches) for ablation in get_args(Ablation)
    }
    resample, floor = patching["resample"], accuracy_floor(probe)
    left = {result.heads: result.recipient_accuracy for result in resample}
    (on_donor,) = patch_heads(model, probe.reversed(), [()], caches=caches)
    scores = HeadScores(step=0, unpatched=left[()], patched={}, all_patched=nan, on_donor=on_donor.donor_accuracy)
    not_measured: dict[str, str] = {}
    if not (complete := len(sets) == 2 ** (model.cfg.n_layers * model.cfg.n_heads)):
        not_measured["Shapley values"] = "not all sets of heads were patched, there are too many"

    def where_exact(name: str, measure: Callable[[], Measured], instead: Measured) -> Measured:
        """What can be measured; else why not is noted."""
        try:
            return measure()
        except ValueError as error:
            not_measured[name] = str(error)
            return instead

    shapley = {
        f"{probe.recipient}_accuracy": left,
        f"{probe.donor}_accuracy": {result.heads: result.donor_accuracy for result in resample},
        "logit_diff": {result.heads: result.logit_diff for result in resample},
    }
    return ProbeAnalysis(
        recipient=probe.recipient,
        donor=probe.donor,
        positions=probe.differing_positions,
        attribution=where_exact("attribution", lambda: attribute_heads(model, probe, caches), []),
        parts=where_exact("attribution", lambda: _mean_parts(model, probe), {}),
        patching=patching,
        shapley={metric: shapley_values(values) for metric, values in shapley.items()} if complete else {},
        shown=shows_behaviour(scores, floor),
        smallest=smallest_knockout_set(left, floor, TOLERANCE) if complete else None,
        chance=floor,
        paths=where_exact("paths", lambda: _paths(model, probe), []),
        attention=attention_by_position(model, probe),
        specificity=head_specificity(model, probe, caches),
        neurons=where_exact("neurons", lambda: patch_neurons(model, probe, caches), None),
        not_measured=not_measured,
    )


def _paths(model: "HookedTransformer", probe: Probe) -> list[PathPatchingResult]:
    with with_all_inputs_hooked(model):
        sample = probe if is_plain(model) else probe.sample(PATH_EXAMPLES)
        return patch_paths(model, sample, default_edge_sets(model, sample))


def _mean_parts(model: "HookedTransformer", probe: Probe) -> dict[str, float]:
    parts = logit_parts(model, probe)
    named = dict(zip(parts.labels, parts.values.double().mean(dim=1).tolist(), strict=True))
    return named | {"sum = mean logit": parts.logit.double().mean().item()}
