"""From the logits of a patched run to the numbers that every kind of patching reports."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_backdoor.functional import metrics
from lit_backdoor.functional.probe import Probe

MOST_NUMBERS = 2**23
"""So many numbers take 64 MB as float64."""


def rows_within_memory(n_sets: int, n_vocab: int, at_most: int) -> int:
    """Return so many rows that the logits of all sets take at most 64 MB as float64, and no more than `at_most`."""
    return min(max(MOST_NUMBERS // max(n_sets * n_vocab, 1), 1), at_most)


def score_logits(logits: Tensor, unpatched: Tensor, recipient_answers: Tensor, donor_answers: Tensor) -> Tensor:
    """Score every example; `average_scores` averages the result.

    Args:
        logits: of each patched set, [set, n, vocab].
        unpatched: the logits with nothing patched, [n, vocab].
        recipient_answers: tokens, [n].
        donor_answers: tokens, [n].

    Returns:
        float64, [set, 5, n]: 1 for the recipient's answer, 1 for the donor's, `logit_diff`, `log_prob` (nats), `kl`
        (nats).
    """
    log_q = metrics.log_probabilities(logits)
    given = metrics.predictions(logits)
    return torch.stack(
        [
            metrics.wide(given == recipient_answers),
            metrics.wide(given == donor_answers),
            metrics.logit_difference(log_q, recipient_answers, donor_answers),
            metrics.log_probability(log_q, recipient_answers),
            metrics.kl_divergence(metrics.log_probabilities(unpatched), log_q),
        ],
        dim=1,
    )


def average_scores(probe: Probe, scores: Tensor, logits: Tensor | None) -> dict[str, Any]:
    """Average the scores of one set over the examples.

    Args:
        probe: the examples.
        scores: from `score_logits`, [5, n].
        logits: of this set, [n, vocab], for the probe's own metrics; None if it has none.

    Returns:
        The fields that `PatchingResult` and `PathPatchingResult` share, by name.
    """
    recipient, donor, logit_diff, log_prob, kl = scores
    difference = metrics.mean(logit_diff, where=probe.answers_differ)
    return {
        "recipient": probe.recipient,
        "donor": probe.donor,
        "n_examples": probe.n_examples,
        "recipient_accuracy": metrics.mean(recipient).value,
        "donor_accuracy": metrics.mean(donor).value,
        "other_rate": metrics.mean(1 - recipient.maximum(donor)).value,
        "logit_diff": difference.value,
        "log_prob": metrics.mean(log_prob).value,
        "kl": metrics.mean(kl).value,
        "n_differing": difference.n,
        "extra": {name: float(metric(logits, probe)) for name, metric in probe.metrics.items() if logits is not None},
    }
