"""Mechanistic interpretability of attention heads: tensors and a hooked model in, labelled results out.

No Lightning, no files, no plots. A model is anything that fulfils `HookedModel`; what is asked of it is a
`Probe`.
"""

from lit_backdoor.functional.ablation import Ablation
from lit_backdoor.functional.attention import mean_attention
from lit_backdoor.functional.attribution import HeadAttribution, LogitParts, attribute_heads, logit_parts
from lit_backdoor.functional.emergence import (
    Emergence,
    HeadScores,
    LossSpike,
    Onset,
    emergence,
    grokking_step,
    loss_spikes,
)
from lit_backdoor.functional.hooked import (
    Head,
    Heads,
    HeadSet,
    HookedModel,
    all_heads,
    head_name,
    head_set_name,
    parse_head_set,
)
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
from lit_backdoor.functional.one_layer import HeadCache, cache_heads, cache_probes, no_shortcut
from lit_backdoor.functional.patching import (
    PatchingResult,
    default_head_sets,
    patch_heads,
    patched_logits,
)
from lit_backdoor.functional.probe import Metric, Probe
from lit_backdoor.functional.rule_heads import RuleHeads
from lit_backdoor.functional.shapley import ShapleyResult, overlap, shapley, shares, smallest_sufficient_set

__all__ = [
    "Ablation",
    "Emergence",
    "Head",
    "HeadAttribution",
    "HeadCache",
    "HeadScores",
    "HeadSet",
    "Heads",
    "HookedModel",
    "LogitParts",
    "LossSpike",
    "Mean",
    "Metric",
    "Onset",
    "PatchingResult",
    "Probe",
    "RuleHeads",
    "ShapleyResult",
    "accuracy",
    "all_heads",
    "attribute_heads",
    "cache_heads",
    "cache_probes",
    "default_head_sets",
    "emergence",
    "grokking_step",
    "head_name",
    "head_set_name",
    "kl_divergence",
    "log_probabilities",
    "log_probability",
    "logit_difference",
    "logit_parts",
    "loss_spikes",
    "mean",
    "mean_attention",
    "no_shortcut",
    "overlap",
    "parse_head_set",
    "patch_heads",
    "patched_logits",
    "predictions",
    "shapley",
    "shares",
    "smallest_sufficient_set",
]
