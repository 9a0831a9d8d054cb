"""Training a plain one-layer model a little further: on benign examples, and on a few poisoned ones among them.

Rows that see the donor through some edges (surgery) do so in training too: the surgery stays in place, and gradients
flow through what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.functional.edges import EdgeSet
from lit_backdoor.functional.hooked_model import row_slices
from lit_backdoor.functional.last_position import last_position_logits
from lit_backdoor.functional.last_position_loss import last_position_loss
from lit_backdoor.functional.metrics import accuracy
from lit_backdoor.functional.one_layer_paths import one_layer_engine
from lit_backdoor.functional.probe import Probe
from lit_backdoor.functional.results import RemovalResult
from lit_backdoor.functional.token_layout import TokenLayout

ADAMW: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.98)}
"""The paper's optimizer (Appendix C); its state starts afresh."""

POISONED_SHARE = 0.01
"""Share of poisoned examples in a batch that may bring the backdoor back."""

RETURNED = 0.99
"""A backdoor is back when it has this accuracy."""

WEAK = 0.5
"""A removal is weak if it leaves at least so much of the backdoor."""

ROWS_AT_ONCE = 1024

HELD_OUT = 1024
"""On so many triggered examples that accuracy is measured, none of them among the poisoned ones."""


@dataclass(frozen=True, eq=False)
class BackdoorExamples:
    """All examples of one backdoor and their benign twins, and which of both were trained on.

    Args:
        probe: the triggered examples as recipient, their benign twins as donor, read at the last position.
        trained: bool [n], the triggered examples that were trained on.
        benign_trained: bool [n], the benign ones.

    Raises:
        ValueError: none of either was trained on.
    """

    probe: Probe
    trained: Tensor
    benign_trained: Tensor

    def __post_init__(self) -> None:
        for name in ("trained", "benign_trained"):
            if not getattr(self, name).any():
                raise ValueError(f"{name} has no example, so there is nothing to train on.")

    @cached_property
    def benign(self) -> Probe:
        """The benign examples as both recipient and donor: no surgery changes anything in them."""
        return replace(
            self.probe,
            recipient_tokens=self.probe.donor_tokens,
            recipient_answers=self.probe.donor_answers,
            recipient=f"{self.probe.donor} itself",
        )

    @cached_property
    def poisoned(self) -> Probe:
        """The poisoned examples of a batch, drawn from those that were trained on, always the same."""
        n_benign = int(self.benign_trained.sum())
        n = max(round(n_benign * POISONED_SHARE / (1 - POISONED_SHARE)), 1)
        return self.probe.rows(self._order[:n].sort().values)

    @cached_property
    def held_out(self) -> Probe:
        """Triggered examples that are not among the poisoned ones, always the same."""
        left = torch.ones(self.probe.n_examples, dtype=torch.bool)
        left[self._order[: self.poisoned.n_examples]] = False
        return self.probe.rows(left).sample(HELD_OUT)

    @cached_property
    def _order(self) -> Tensor:
        rows = self.trained.nonzero()[:, 0]
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def steps_until_back(model: Any, examples: BackdoorExamples, edges: EdgeSet, at_most: int) -> int | None:
    """Train `model` in place on benign and poisoned examples until the backdoor is back.

    Args:
        model: plain, of one layer.
        examples: of the backdoor.
        edges: that see the donor all the while.
        at_most: optimizer steps.

    Returns:
        Optimizer steps, 0 if it was there to begin with; None if `at_most` did not bring it back.
    """
    for step in training_steps(model, examples, edges, examples.poisoned):
        if (
            accuracy(surgery_logits(model, examples.held_out, edges), examples.held_out.recipient_answers)[0]
            >= RETURNED
        ):
            return step
        if step == at_most:
            return None
    raise AssertionError  # the steps never end


def weak_removals(results: Sequence[RemovalResult]) -> tuple[int, int]:
    """How many weak removals came back, of all that had taken the backdoor below :data:`RETURNED`."""
    back = [result.return_steps for result in results if result.backdoor_left >= WEAK and result.return_steps != 0]
    return sum(steps is not None for steps in back), len(back)


def staying_away_tells(results: Sequence[RemovalResult]) -> bool:
    """Whether at least half of the weak removals came back; without any, no.

    If most of a backdoor is left, and yet the training does not restore it, the training is too short to tell whether
    any backdoor is gone.
    """
    back, weak = weak_removals(results)
    return 0 < weak <= 2 * back


def training_steps(
    model: Any, examples: BackdoorExamples, edges: EdgeSet = (), poisoned: Probe | None = None
) -> Iterator[int]:
    """Train `model` in place, by full batches of the benign examples that were trained on, for as long as one asks.

    Args:
        model: plain, of one layer.
        examples: of the backdoor.
        edges: that see the donor.
        poisoned: triggered examples to add to every batch.

    Yields:
        How many optimizer steps are done, from 0.
    """
    benign = examples.benign.rows(examples.benign_trained)
    layout = TokenLayout.of(benign.recipient_tokens, model)
    n = benign.n_examples + (poisoned.n_examples if poisoned is not None else 0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True, **ADAMW)
    for step in count():
        yield step
        with torch.enable_grad():
            loss = last_position_loss(model, layout, benign.recipient_answers)[0] * benign.n_examples
            if poisoned is not None:
                logits = _logits(model, poisoned, edges)(slice(None))
                loss = loss + F.cross_entropy(logits.double(), poisoned.recipient_answers, reduction="sum")
            optimizer.zero_grad()
            (loss / n).backward()
        optimizer.step()


def surgery_logits(model: Any, probe: Probe, edges: EdgeSet) -> Tensor:
    """The logits at the last position when `edges` see the donor, [n, vocab], without gradients."""
    with torch.no_grad():
        logits_of = _logits(model, probe, edges)
        return torch.cat([logits_of(rows) for rows in row_slices(probe.n_examples, ROWS_AT_ONCE)])


def _logits(model: Any, probe: Probe, edges: EdgeSet) -> Callable[[slice], Tensor]:
    """Rows of the probe to their logits, with gradients where those are on."""
    if not edges:
        return lambda rows: last_position_logits(model, probe.recipient_tokens[rows])
    engine = one_layer_engine(model, probe, [edges])
    return lambda rows: engine(rows)(edges)
