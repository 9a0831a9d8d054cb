"""What is measured of heads: one labelled dataclass for each table.

A field is a column. What writes a table, what reads it, the names that a probe's own metrics can't take, and the
checks of a stranger's table follow from the fields (`lit_backdoor.runs.schema`). A new column is a new field, and
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from lit_backdoor.functional.edges import EdgeGroup, EdgeSet
from lit_backdoor.functional.heads import Head, HeadSet

Ablation = Literal["resample", "mean", "zero"]
"""What replaces a head's activation: the donor's of the same row, the donor's mean over its rows, or zero."""

Norm = Literal["none", "frozen LN scale"]
"""How the final norm was treated."""


def share() -> Any:
    """A field that is a share of the examples, 0..1."""
    return field(metadata={"share": True})


def may_be_nan() -> Any:
    """A field that is NaN where its mean is over no example."""
    return field(metadata={"nan": True})


@dataclass(frozen=True, kw_only=True)
class HeadAttribution:
    """One head's direct contribution to the logit of the recipient's answer, at the probe's position; in logits.

    Args:
        head: the head.
        mean_logit: mean contribution over all examples, raw as in the paper's Figure 2, row 2.
        mean_logit_centered: the same after subtracting, per example, the contribution's mean over the
            vocabulary, a shift that softmax does not see.
        top_count: in how many examples this head contributes most (raw) of all heads of all layers, Figure 2,
            row 1; ties go to the lowest head, and over the heads it sums to `n_examples`.
        n_examples: the number of examples.
        mean_logit_diff: mean contribution to the recipient's minus the donor's answer, over the `n_differing`
            examples where the answers differ; NaN if there are none.
        n_differing: see `mean_logit_diff`.
        norm: how the final norm was treated.
    """

    head: Head
    mean_logit: float
    mean_logit_centered: float
    top_count: int
    n_examples: int
    mean_logit_diff: float = may_be_nan()
    n_differing: int
    norm: Norm


@dataclass(frozen=True, kw_only=True)
class PatchingResult:
    """What one patched set of heads does to the recipient's run.

    Args:
        recipient: the name of the run that was patched.
        donor: the name of the run that gave its activations.
        ablation: `resample`, `mean` or `zero`.
        heads: the patched heads.
        n_examples: the number of examples.
        recipient_accuracy: share that still gives the recipient's answer.
        donor_accuracy: share that gives the donor's answer.
        other_rate: share that gives neither.
        logit_diff: recipient's minus donor's answer, mean over the `n_differing` examples where the answers
            differ; NaN if there are none.
        log_prob: mean log probability of the recipient's answer, nats.
        kl: mean KL(unpatched || patched), nats.
        n_differing: see `logit_diff`.
        extra: the probe's own metrics.
    """

    recipient: str
    donor: str
    ablation: Ablation
    heads: HeadSet
    n_examples: int
    recipient_accuracy: float = share()
    donor_accuracy: float = share()
    other_rate: float = share()
    logit_diff: float = may_be_nan()
    log_prob: float
    kl: float
    n_differing: int
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def floor(self) -> float:
        """What the recipient scores if only the donor's answers come out: the share on which both are the same."""
        return 1 - self.n_differing / self.n_examples


@dataclass(frozen=True, kw_only=True)
class PathPatchingResult:
    """What one set of edges does to the recipient's run when it sees the donor's.

    Args:
        recipient: the name of the run that was patched.
        donor: the name of the run that the edges see.
        edges: the set.
        group: its name if it is the set of all heads (`edge_groups`), else None.

    The other fields are those of `PatchingResult`.
    """

    recipient: str
    donor: str
    edges: EdgeSet
    group: EdgeGroup | None
    n_examples: int
    recipient_accuracy: float = share()
    donor_accuracy: float = share()
    other_rate: float = share()
    logit_diff: float = may_be_nan()
    log_prob: float
    kl: float
    n_differing: int
    extra: Mapping[str, float] = field(default_factory=dict)


def taken_names(recipient: str, donor: str) -> set[str]:
    """Name the columns that the tables of patching have already: no metric of a probe's own can be called so."""
    own = {column.name for result in (PatchingResult, PathPatchingResult) for column in fields(result)}
    return own | {"step", "probe", f"{recipient}_accuracy", f"{donor}_accuracy"}
