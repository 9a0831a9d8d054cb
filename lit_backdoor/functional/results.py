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
class PatchedHeads:
    """Which heads were patched, and how.

    Args:
        recipient: the name of the run that was patched.
        donor: the name of the run that gave its activations.
        ablation: `resample`, `mean` or `zero`.
        heads: the patched heads.
    """

    recipient: str
    donor: str
    ablation: Ablation
    heads: HeadSet


@dataclass(frozen=True, kw_only=True)
class PatchedEdges:
    """Which edges see the donor.

    Args:
        recipient: the name of the run that was patched.
        donor: the name of the run that the edges see.
        edges: the set.
        group: its name if it is a group over all heads (`edge_groups`): Q, K, V, QK, QKV, D (past the heads), A_mlp
            and A_logits (from the heads to the MLP, to the logits); else None.
    """

    recipient: str
    donor: str
    edges: EdgeSet
    group: EdgeGroup | None


@dataclass(frozen=True, kw_only=True)
class PatchingScores:
    """What patching does to the recipient's run, in the same numbers whatever was patched.

    Args:
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
class PatchingResult(PatchingScores, PatchedHeads):  # a dataclass takes the fields of its last base first
    """What one patched set of heads does to the recipient's run.

    The fields of `PatchedHeads`, then those of `PatchingScores`.
    """


@dataclass(frozen=True, kw_only=True)
class PathPatchingResult(PatchingScores, PatchedEdges):
    """What one set of edges does to the recipient's run when it sees the donor.

    The fields of `PatchedEdges`, then those of `PatchingScores`.
    """


@dataclass(frozen=True, kw_only=True)
class PositionAttention:
    """Where one head looks from the read position, one position at a time, and what the weights alone say of the head.

    What is a head's, from `entropy` on, is the same at all its positions. What the weights say is NaN for other
    models than plain ones of one layer, and where the two runs do not differ at one position alone; see
    `TriggerWeights`.

    Args:
        head: the head.
        position: the position that is looked at, from 0.
        attention: mean over the recipient's run, 0..1; over the positions it sums to 1.
        attention_std: its standard deviation over the examples.
        donor_attention: mean over the donor's run.
        donor_attention_std: its standard deviation.
        shift: `attention` minus `donor_attention`; over the positions it sums to 0.
        shift_std: standard deviation over the examples of the difference, row by row.
        entropy: of the attention in the recipient's run, mean over the examples, nats.
        donor_entropy: the same in the donor's run.
        output_change: norm of the recipient's minus the donor's output of the head, mean over the examples.
        score_gap: how much the head prefers the trigger's position to the others in the donor's run, in scores.
        query_gap_shift: what the recipient's token adds to the gap as a query.
        key_gap_shift: what it adds as a key.
        gap_shift: what it adds as both.
        write: norm of what the head's OV writes for the trigger, at an attention of 1.
        write_to_mlp: norm of the same in the inputs of the MLP's neurons.
        write_to_logits: norm of the same in the logits, centred.
        n_examples: the number of examples.
    """

    head: Head
    position: int
    attention: float
    attention_std: float
    donor_attention: float
    donor_attention_std: float
    shift: float
    shift_std: float
    entropy: float
    donor_entropy: float
    output_change: float
    score_gap: float = may_be_nan()
    query_gap_shift: float = may_be_nan()
    key_gap_shift: float = may_be_nan()
    gap_shift: float = may_be_nan()
    write: float = may_be_nan()
    write_to_mlp: float = may_be_nan()
    write_to_logits: float = may_be_nan()
    n_examples: int


@dataclass(frozen=True, kw_only=True)
class NeuronCounts:
    """How many neurons the recipient's rule needs, and how many bring it; see `NeuronResult`.

    Args:
        n_neurons: how many the MLP has.
        needed: so many, made the donor's in order of their mediated effect, halve the recipient's rule; None if none.
        sufficient: so many of the recipient's, in the same order, bring half of it into the donor's run; None if none.
        overlap: of the needed ones, the share that is also among as many that the donor's rule needs most, 0..1.
        overlap_by_chance: what random orders would have on average.
        n_differing: examples where the answers differ.
    """

    n_neurons: int
    needed: int | None
    sufficient: int | None
    overlap: float = may_be_nan()
    overlap_by_chance: float = may_be_nan()
    n_differing: int


Frequencies = tuple[int, ...]
"""Whole numbers, ascending."""


@dataclass(frozen=True, kw_only=True)
class HeadProgress:
    """How far Fourier components of a + b (waves) explain one rule, and what its examples do to one head.

    What is a rule's, from `modulus` to `excluded_loss` (see `ProgressMeasures`), is the same for all heads.

    Args:
        head: the head.
        modulus: of the rule.
        key: the key frequencies, as in 3+14.
        explained: share of the logits' variance that they explain together.
        constant: share of the logits' mean square that does not depend on a and b.
        loss: mean cross-entropy over all pairs, nats.
        restricted_loss: the same with nothing left but the key waves and the mean.
        train_loss: mean cross-entropy over the training pairs, nats.
        excluded_loss: the same without the key waves.
        embed_norm: Frobenius norm of W_E, the same for all heads and rules.
        qk_norm: of the head's `W_Q W_K^T`.
        ov_norm: of the head's `W_V W_O`.
        gradient_norm: of the gradient of the rule's training loss on the head's parameters.
        gradient_share: this norm over the sum of all rules' norms, 0..1.
        cosine: between this gradient and the first rule's, -1..1; below 0 they undo each other's work. NaN for the
            first rule itself.
    """

    head: Head
    modulus: int
    key: Frequencies
    explained: float = may_be_nan()
    constant: float = may_be_nan()
    loss: float
    restricted_loss: float
    train_loss: float = may_be_nan()
    excluded_loss: float = may_be_nan()
    embed_norm: float
    qk_norm: float
    ov_norm: float
    gradient_norm: float = may_be_nan()
    gradient_share: float = may_be_nan()
    cosine: float = may_be_nan()


@dataclass(frozen=True, kw_only=True)
class RemovalResult:
    """What one way to remove the recipient's rule leaves of it, what it costs the donor's, and whether it lasts.

    Args:
        method: one of `lit_backdoor.functional.removal.METHODS`; `none` leaves the model as it is.
        target: what it acts on, in the words of `Removal`.
        backdoor_left: accuracy on all of the recipient's examples afterwards.
        benign_lost: how much lower the accuracy on all of the donor's examples is afterwards; below 0 if it rose.
        return_steps: optimizer steps of training on 1% poisoned examples until the rule is back (see
            `steps_until_back`), 0 if it never left; None if it did not come back.
        return_limit: after so many steps nobody waited any longer.
        n_poisoned: poisoned examples in each of those steps.
    """

    method: str
    target: str
    backdoor_left: float = share()
    benign_lost: float
    return_steps: int | None
    return_limit: int
    n_poisoned: int


def taken_names(recipient: str, donor: str) -> set[str]:
    """Name the columns that the tables of patching have already: no metric of a probe's own can be called so."""
    own = {column.name for result in (PatchingResult, PathPatchingResult) for column in fields(result)}
    return own | {"step", "probe", "clamped", f"{recipient}_accuracy", f"{donor}_accuracy"}
