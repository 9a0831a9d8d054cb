"""The examples of one rule of modular addition, and how training on them goes, rule by rule and head by head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from lit_backdoor.functional.fourier import progress_measures
from lit_backdoor.functional.gradients import HeadGradient, head_gradients
from lit_backdoor.functional.heads import Head, all_heads
from lit_backdoor.functional.hooked_model import HookedModel, evaluating, row_slices
from lit_backdoor.functional.last_position import last_position_logits, why_not_exact
from lit_backdoor.functional.results import HeadProgress
from lit_backdoor.functional.weights import weight_norms


@dataclass(frozen=True, eq=False)
class RuleExamples:
    """All pairs under one rule's trigger.

    Args:
        modulus: the rule answers (a + b) mod `modulus`.
        tokens: [P0 * P0, pos], row a * P0 + b is the pair (a, b); the answer is read at the last position.
        trained: bool, [P0 * P0], the pairs that are trained on under this trigger; none where that is not known.
    """

    modulus: int
    tokens: Tensor
    trained: Tensor

    def to(self, device: torch.device) -> RuleExamples:
        """The same on `device`."""
        return RuleExamples(self.modulus, self.tokens.to(device), self.trained.to(device))

    @property
    def answers(self) -> Tensor:
        """[P0 * P0]."""
        numbers = torch.arange(round(len(self.tokens) ** 0.5), device=self.tokens.device)
        return ((numbers[:, None] + numbers) % self.modulus).flatten()


def rule_progress(model: HookedModel, rules: Mapping[str, RuleExamples]) -> dict[str, list[HeadProgress]]:
    """Progress measures, norms and gradients; one result for each rule and head.

    Args:
        model: a `HookedModel` with its parameters as `head_gradients` needs them.
        rules: by name; the first is the one that the others' gradients are compared with.

    Raises:
        ValueError: see `progress_measures` and `head_gradients`.
    """
    rules = {name: rule.to(model.W_U.device) for name, rule in rules.items()}
    norms, gradients = weight_norms(model), _gradients(model, rules)
    results = {}
    for index, (name, rule) in enumerate(rules.items()):
        measures = progress_measures(_logits(model, rule.tokens), rule.modulus, rule.trained)
        results[name] = [
            HeadProgress(
                head=head,
                modulus=rule.modulus,
                key=measures.key,
                explained=measures.explained,
                constant=measures.constant,
                loss=measures.loss,
                restricted_loss=measures.restricted_loss,
                train_loss=measures.train_loss,
                excluded_loss=measures.excluded_loss,
                embed_norm=norms.embed,
                qk_norm=norms.qk[head],
                ov_norm=norms.ov[head],
                gradient_norm=gradient.norms.get(index, nan),
                gradient_share=gradient.shares.get(index, nan),
                cosine=gradient.cosines.get((0, index), nan),
            )
            for head, gradient in gradients.items()
        ]
    return results


def _gradients(model: HookedModel, rules: Mapping[str, RuleExamples]) -> dict[Head, HeadGradient]:
    """Of the training examples of all rules, by head; a rule without any has no gradient."""
    parts = list(rules.values())
    if not any(rule.trained.any() for rule in parts):
        return {head: HeadGradient(head, {}, {}, {}) for head in all_heads(model)}
    tokens = torch.cat([rule.tokens[rule.trained] for rule in parts])
    answers = torch.cat([rule.answers[rule.trained] for rule in parts])
    counts = torch.tensor([int(rule.trained.sum()) for rule in parts])
    of_rule = torch.arange(len(parts)).repeat_interleave(counts)
    return {gradient.head: gradient for gradient in head_gradients(model, tokens, answers, of_rule)}


def _logits(model: HookedModel, tokens: Tensor) -> Tensor:
    """At the last position, [n, vocab]."""
    with evaluating(model):
        if why_not_exact(model) is None:
            return last_position_logits(model, tokens)
        return torch.cat([model.run_with_hooks(tokens[rows], fwd_hooks=[])[:, -1] for rows in row_slices(len(tokens))])
