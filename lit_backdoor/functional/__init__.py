"""Mechanistic interpretability of attention heads: tensors and a hooked model in, labelled results out.

No Lightning, no files, no plots. A model is anything that fulfils `HookedModel`; what is asked of it is a
`Probe`.
"""

from lit_backdoor.functional.attention import (
    HeadAttention,
    attention_by_position,
    attention_moved,
    compare_attention,
    mean_attention,
)
from lit_backdoor.functional.attribution import LogitParts, attribute_heads, logit_parts
from lit_backdoor.functional.capture import AttentionShift, capture_record
from lit_backdoor.functional.edge_sets import all_edges, default_edge_sets, edge_groups
from lit_backdoor.functional.edges import (
    Edge,
    EdgeGroup,
    EdgeSet,
    Receiver,
    edge_name,
    edge_set_name,
    parse_edge_set,
)
from lit_backdoor.functional.emergence import (
    HeadEmergence,
    HeadScores,
    costly_heads,
    head_emergence,
    shows_behaviour,
)
from lit_backdoor.functional.fourier import ProgressMeasures, progress_measures
from lit_backdoor.functional.gradients import HeadGradient, head_gradients
from lit_backdoor.functional.heads import Head, Heads, HeadSet, all_heads, head_name, head_set_name, parse_head_set
from lit_backdoor.functional.hooked_model import HookedModel
from lit_backdoor.functional.loss_spikes import PROMINENCES, LossSpike, find_loss_spikes
from lit_backdoor.functional.metrics import (
    Mean,
    accuracy,
    kl_divergence,
    log_probabilities,
    log_probability,
    logit_difference,
    mean,
    predictions,
)
from lit_backdoor.functional.moments import Moment
from lit_backdoor.functional.neurons import NeuronCurve, NeuronResult, patch_neurons, why_not_linear
from lit_backdoor.functional.one_layer import HeadCache, cache_heads, cache_probes, why_no_shortcut
from lit_backdoor.functional.patching import (
    default_head_sets,
    patch_heads,
    patched_logits,
)
from lit_backdoor.functional.paths import patch_paths, patched_path_logits
from lit_backdoor.functional.probe import Metric, Probe
from lit_backdoor.functional.removal import (
    Removal,
    check_removal,
    measure_removal,
    parse_removal,
    plan_removals,
    why_not_in_weights,
    with_changed_weights,
)
from lit_backdoor.functional.results import (
    Ablation,
    HeadAttribution,
    HeadProgress,
    NeuronCounts,
    PatchingResult,
    PathPatchingResult,
    PositionAttention,
    RemovalResult,
)
from lit_backdoor.functional.retraining import BackdoorExamples
from lit_backdoor.functional.rule_examples import RuleExamples, rule_progress
from lit_backdoor.functional.rule_heads import RuleHeads
from lit_backdoor.functional.run_state import RunState, judge_run, lowest_training_accuracy, stuck_since
from lit_backdoor.functional.shapley import (
    ShapleyResult,
    effective_heads,
    overlap,
    shapley_values,
    shares,
    smallest_knockout_set,
)
from lit_backdoor.functional.specificity import (
    HeadSpecificity,
    accuracy_floor,
    cost_above_floor,
    head_specificity,
    selectivity,
)
from lit_backdoor.functional.weights import TriggerWeights, WeightNorms, trigger_weights, weight_norms

__all__ = [
    "PROMINENCES",
    "Ablation",
    "AttentionShift",
    "BackdoorExamples",
    "Edge",
    "EdgeGroup",
    "EdgeSet",
    "Head",
    "HeadAttention",
    "HeadAttribution",
    "HeadCache",
    "HeadEmergence",
    "HeadGradient",
    "HeadProgress",
    "HeadScores",
    "HeadSet",
    "HeadSpecificity",
    "Heads",
    "HookedModel",
    "LogitParts",
    "LossSpike",
    "Mean",
    "Metric",
    "Moment",
    "NeuronCounts",
    "NeuronCurve",
    "NeuronResult",
    "PatchingResult",
    "PathPatchingResult",
    "PositionAttention",
    "Probe",
    "ProgressMeasures",
    "Receiver",
    "Removal",
    "RemovalResult",
    "RuleExamples",
    "RuleHeads",
    "RunState",
    "ShapleyResult",
    "TriggerWeights",
    "WeightNorms",
    "accuracy",
    "accuracy_floor",
    "all_edges",
    "all_heads",
    "attention_by_position",
    "attention_moved",
    "attribute_heads",
    "cache_heads",
    "cache_probes",
    "capture_record",
    "check_removal",
    "compare_attention",
    "cost_above_floor",
    "costly_heads",
    "default_edge_sets",
    "default_head_sets",
    "edge_groups",
    "edge_name",
    "edge_set_name",
    "effective_heads",
    "find_loss_spikes",
    "head_emergence",
    "head_gradients",
    "head_name",
    "head_set_name",
    "head_specificity",
    "judge_run",
    "kl_divergence",
    "log_probabilities",
    "log_probability",
    "logit_difference",
    "logit_parts",
    "lowest_training_accuracy",
    "mean",
    "mean_attention",
    "measure_removal",
    "overlap",
    "parse_edge_set",
    "parse_head_set",
    "parse_removal",
    "patch_heads",
    "patch_neurons",
    "patch_paths",
    "patched_logits",
    "patched_path_logits",
    "plan_removals",
    "predictions",
    "progress_measures",
    "rule_progress",
    "selectivity",
    "shapley_values",
    "shares",
    "shows_behaviour",
    "smallest_knockout_set",
    "stuck_since",
    "trigger_weights",
    "weight_norms",
    "why_no_shortcut",
    "why_not_in_weights",
    "why_not_linear",
    "with_changed_weights",
]
