"""The paper's numbers beside ours, and whether they agree."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from lit_backdoor.functional import Head, HeadSet, parse_head_set
from lit_backdoor.report.finding import ENOUGH_SEEDS
from lit_backdoor.report.roles import RoleSet, by_role, head_order, role_set_name, roles_of
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_statistics import Summary, summarise

PAPER_OPTIONS: Mapping[str, Any] = {
    "n_layers": 1,
    "n_heads": 4,
    "d_model": 128,
    "d_mlp": 512,
    "act_fn": "relu",
    "normalization_type": None,
    "train_biases": False,
    "lr": 1e-3,
    "weight_decay": 1.0,
    "betas": [0.9, 0.98],
    "trigger_position": 2,
    "train_fraction": 0.3,
    "split": "examples",
}
"""The paper's task and model, Appendices A to C; P0 is 113."""

QUANTITIES = {
    "backdoor_accuracy": "backdoor accuracy, patched: {what}",
    "mean_logit": "mean contribution to the backdoor logit, {what}",
    "largest_top_share": "share of the examples in which one head contributes most",
    "benign_grokking_step": "step at which the benign rule has generalised",
    "final_log_loss": "log training loss in the end (natural logarithm)",
}
"""The quantities that are compared, in words."""


@dataclass(frozen=True)
class Published:
    """One number of the paper; ``low`` and ``high`` differ where it is a range.

    Attributes:
        source: the table or figure.
        experiment: its number there.
        p1: None for the clean model.
        quantity: one of ``QUANTITIES``, or ``training_steps``.
        heads: the patched or contributing heads, with the paper's own head numbers.
        tolerance: how far beyond the range of our seeds it may lie.
        how: ``printed``, or ``read off the plot``.
    """

    source: str
    experiment: str
    p1: int | None
    quantity: str
    heads: HeadSet
    low: float
    high: float
    tolerance: float
    how: str


@dataclass(frozen=True)
class Comparison:
    """One number of the paper beside ours.

    Attributes:
        what: the quantity in words, heads by role.
        ours: over the seeds.
        inside: whether it lies within the range of our seeds, widened by its tolerance.
        verdict: ``agrees`` or ``differs``; ``few seeds`` where it lies outside of the range of fewer than three;
            ``no run``; ``other task``.
    """

    published: Published
    what: str
    ours: Summary
    inside: bool
    verdict: str

    @property
    def model(self) -> str:
        """``clean``, or ``mod 7``."""
        return "clean" if self.published.p1 is None else f"mod {self.published.p1}"


def published() -> list[Published]:
    """Every number of published.csv: the paper's tables as printed, and what can be read off its plots."""
    text = (files("lit_backdoor.report") / "published.csv").read_text(encoding="utf-8")
    return [
        Published(
            source=row["source"],
            experiment=row["experiment"],
            p1=None if row["p1"] == "clean" else int(row["p1"]),
            quantity=row["quantity"],
            heads=parse_head_set(row["heads"] or "none"),
            low=float(row["low"]),
            high=float(row["high"]),
            tolerance=float(row["tolerance"]),
            how=row["how"],
        )
        for row in csv.DictReader(text.splitlines())
    ]


def published_table(source: str) -> dict[str, dict[HeadSet, float]]:
    """The accuracies of ``Table 1`` or ``Table 2``: by experiment, then by patched heads."""
    found: dict[str, dict[HeadSet, float]] = {}
    for one in published():
        if one.source == source:
            found.setdefault(one.experiment, {})[one.heads] = one.low
    return found


def published_order(accuracies: Mapping[HeadSet, float]) -> tuple[Head, ...]:
    """The heads of one of the paper's experiments by role."""
    singles = [heads for heads in accuracies if len(heads) == 1]
    return tuple(heads[0] for heads in sorted(singles, key=lambda heads: (accuracies[heads], heads)))


def paper_by_role() -> dict[RoleSet, list[float]]:
    """The accuracies of the paper's Table 2 by role, one per experiment."""
    found: dict[RoleSet, list[float]] = {}
    for accuracy in published_table("Table 2").values():
        order = published_order(accuracy)
        for heads, value in accuracy.items():
            found.setdefault(roles_of(heads, order), []).append(value)
    return found


def paper_steps(p1: int | None) -> int | None:
    """How many steps the paper trained this model; None if it did not."""
    return next((int(one.low) for one in published() if one.quantity == "training_steps" and one.p1 == p1), None)


def other_task(run: Run) -> list[str]:
    """The options in which a run is not the paper's, as ``name: value``."""
    found = [] if run.task.n_numbers == 113 else [f"P0: {run.task.n_numbers}"]
    return found + [
        f"{name}: {run.options[name]}" for name, value in PAPER_OPTIONS.items() if run.options[name] != value
    ]


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Every published number beside the runs with the same P1."""
    found = []
    for one in published():
        if one.quantity == "training_steps":
            continue  # see paper_steps
        what, values = _ours(one, [run for run in runs if run.p1 == one.p1])
        ours = summarise(values)
        below, above = ours.smallest - one.tolerance, ours.largest + one.tolerance  # NaN without seeds
        inside = one.low <= above and one.high >= below
        if not values:
            verdict = "no run"
        elif other_task(runs[0]):
            verdict = "other task"
        else:
            verdict = "agrees" if inside else "differs" if ours.n >= ENOUGH_SEEDS else "few seeds"
        found.append(Comparison(one, what, ours, inside, verdict))
    return found


def _ours(one: Published, runs: Sequence[Run]) -> tuple[str, list[float]]:
    """What a published number is about, heads by role, and the same of each of our runs that has it."""
    what, values = "", []
    if one.quantity == "backdoor_accuracy":
        roles = _published_roles(one)
        what = role_set_name(roles, PAPER_OPTIONS["n_heads"])
        results = [by_role(run.patching["backdoor"], head_order(run.patching["backdoor"])) for run in runs]
        values = [found[roles].recipient_accuracy for found in results if roles in found]
    elif one.quantity == "mean_logit":
        rank = _published_rank(one)
        what = f"head with rank {rank}"
        ours = [sorted((head.mean_logit for head in run.attribution["backdoor"]), reverse=True) for run in runs]
        values = [ranked[rank - 1] for ranked in ours if rank <= len(ranked)]
    elif one.quantity == "largest_top_share":
        values = [max(head.top_count / head.n_examples for head in run.attribution["backdoor"]) for run in runs]
    elif one.quantity == "benign_grokking_step":
        values = [step for run in runs if (step := run.emergence["benign_generalised_step"]) is not None]
    elif one.quantity == "final_log_loss":
        values = [final_log_loss(run) for run in runs]
    return QUANTITIES[one.quantity].format(what=what), values


def _published_roles(one: Published) -> RoleSet:
    return roles_of(one.heads, published_order(published_table(one.source)[one.experiment]))


def _published_rank(one: Published) -> int:
    """The rank of a published contribution among the same model's, the largest first."""
    same = [other for other in published() if (other.quantity, other.p1) == (one.quantity, one.p1)]
    return 1 + sorted(same, key=lambda other: (-other.low, other.heads)).index(one)


def final_log_loss(run: Run) -> float:
    """Natural logarithm of the training loss, the median over the last tenth of the run: a spike does not move it."""
    losses = [
        float(row["train/loss"]) for row in run.metrics if row["train/loss"] and int(row["step"]) >= 0.9 * run.step
    ]
    middle = sorted(losses)[len(losses) // 2] if losses else math.nan
    return math.log(middle) if middle > 0 else math.nan
