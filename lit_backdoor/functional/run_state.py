"""What a training run has come to: not fitted, fitted or generalised, and whether it looks stuck.

The thresholds are fixed beforehand. A step is named when a rule first gets there; the state is what holds at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, Literal

from lit_backdoor.functional.moments import check_steps

State = Literal["not fitted", "fitted", "generalised"]
"""The state of a run:

- `not fitted`: the training accuracy of some rule is below 99%.
- `fitted`: the training accuracy of every rule is at least 99%.
- `generalised`: fitted, the validation accuracy of every rule is at least 99%, and the natural logarithm of every
  rule's validation loss is below -5. Accuracy alone comes long before the end: runs have 99% at a logarithm of -2.3.
"""

LossOf = Literal["every rule", "all rules together", "not recorded"]
"""Whose validation loss `generalised` was judged by. Without any, the accuracies decide alone."""

Curve = Mapping[int, float]
"""What was measured, by step."""

ACCURACY = 0.99
"""Accuracy from which a rule counts as fitted (training) or generalised (validation)."""

LN_LOSS = -5.0
"""Natural logarithm of the validation loss below which a rule counts as generalised."""

END = 5
"""So many last measurements are the end of a run: what holds at most of them is its state, so no single spike is."""

STUCK_STEPS, STUCK_GAIN = 500, 0.01
"""See `stuck_since`."""


@dataclass(frozen=True)
class RuleMoments:
    """The first steps at which one rule was fitted and generalised; None if it has not been."""

    fitted_step: int | None
    generalised_step: int | None


@dataclass(frozen=True)
class RunState:
    """What a run has come to.

    Args:
        state: at the end; None if no training accuracy was recorded, or not of every rule.
        fitted_step: the first measurement at which every rule was fitted; None if there was none.
        generalised_step: the first measurement at which every rule had generalised (grokked); None if there was none.
            A run can lose that again: then `state` says so.
        by_rule: the same moments of each rule by itself.
        loss_of: whose validation loss was used.
    """

    state: State | None
    fitted_step: int | None
    generalised_step: int | None
    by_rule: Mapping[str, RuleMoments]
    loss_of: LossOf

    def record(self) -> dict[str, Any]:
        """The fields as JSON has them, with the moments of each rule as RULE_fitted_step and RULE_generalised_step."""
        rules = {f"{rule}_{key}": step for rule, moments in self.by_rule.items() for key, step in vars(moments).items()}
        return {
            "state": self.state,
            "fitted_step": self.fitted_step,
            "generalised_step": self.generalised_step,
            "validation_loss_of": self.loss_of,
            **rules,
        }


def judge_run(metrics: Mapping[str, Curve]) -> RunState:
    """The state of a run, from the metrics that it recorded.

    Args:
        metrics: by name, of which `train/RULE_accuracy`, `val/RULE_accuracy`, `val/RULE_loss` and `val/loss` are read.
            If a rule has no validation loss, `val/loss` is taken for all of them.
    """
    rules = rules_of(metrics)
    train = {rule: metrics.get(f"train/{rule}_accuracy", {}) for rule in rules}
    fitted = {rule: {step: value >= ACCURACY for step, value in curve.items()} for rule, curve in train.items()}
    own = {rule: metrics.get(f"val/{rule}_loss", {}) for rule in rules}
    overall = metrics.get("val/loss", {})
    loss_of: LossOf = "not recorded"
    if rules and all(own.values()):
        loss_of = "every rule"
    elif overall:
        loss_of, own = "all rules together", dict.fromkeys(rules, overall)
    generalised = {}
    for rule in rules:
        accuracy = metrics.get(f"val/{rule}_accuracy", {})
        small = {step: loss < exp(LN_LOSS) for step, loss in own[rule].items()}
        if loss_of == "not recorded":
            small = dict.fromkeys(accuracy, True)
        generalised[rule] = {step: value >= ACCURACY and small.get(step, False) for step, value in accuracy.items()}
    every_fitted, every_generalised = _every(fitted), _every(generalised)
    state: State | None = None
    if every_fitted:
        state = "not fitted" if not _at_the_end(every_fitted) else "fitted"
        if state == "fitted" and _at_the_end(every_generalised):
            state = "generalised"
    return RunState(
        state,
        _first(every_fitted),
        _first(every_generalised),
        {rule: RuleMoments(_first(fitted[rule]), _first(generalised[rule])) for rule in rules},
        loss_of,
    )


def rules_of(metrics: Mapping[str, Curve]) -> list[str]:
    """The names of the rules that have an accuracy among `metrics`, in their order."""
    names = [name.partition("/")[2] for name in metrics if name.startswith(("train/", "val/"))]
    return list(dict.fromkeys(name.removesuffix("_accuracy") for name in names if name.endswith("_accuracy")))


def lowest_training_accuracy(metrics: Mapping[str, Curve]) -> dict[int, float]:
    """The training accuracy of the worst rule, at every step at which all rules were measured."""
    curves = [metrics.get(f"train/{rule}_accuracy", {}) for rule in rules_of(metrics)]
    shared = set(curves[0]).intersection(*curves[1:]) if curves else set()
    return {step: min(curve[step] for curve in curves) for step in sorted(shared)}


def stuck_since(steps: Sequence[int], accuracies: Sequence[float]) -> int | None:
    """The step since which a run that never fitted makes no progress; None if it does not look stuck.

    A run looks stuck if the training accuracy of its worst rule has never been 99%, and has not risen by a
    percentage point (`STUCK_GAIN`) above its last record for 500 steps (`STUCK_STEPS`). Of the fourteen runs in
    `results/` this says so of the two that never fit, at steps 1,750 and 1,190, and of no other: the longest pause of
    a run that fits later is 170 steps. It is a rule of thumb: a task that learns nothing for long at first breaks it.

    Args:
        steps: ascending.
        accuracies: the training accuracy of the worst rule at each step, 0..1; NaN is no progress.

    Raises:
        ValueError: the steps do not ascend, or the two lengths differ.
    """
    check_steps(steps, accuracies)
    record_step, record = None, 0.0
    for step, accuracy in zip(steps, accuracies, strict=True):
        if accuracy >= ACCURACY:
            return None
        if record_step is None or accuracy >= record + STUCK_GAIN:
            record_step, record = step, max(accuracy, 0.0)
    return record_step if record_step is not None and steps[-1] - record_step >= STUCK_STEPS else None


def _every(holds: Mapping[str, Mapping[int, bool]]) -> dict[int, bool]:
    """Whether something holds for every rule, at each step at which all of them were measured."""
    curves = list(holds.values())
    shared = set(curves[0]).intersection(*curves[1:]) if curves else set()
    return {step: all(curve[step] for curve in curves) for step in sorted(shared)}


def _first(holds: Mapping[int, bool]) -> int | None:
    """The first step at which something holds."""
    return min((step for step, held in holds.items() if held), default=None)


def _at_the_end(holds: Mapping[int, bool]) -> bool:
    """Whether something holds at most of the last `END` measurements."""
    last = [holds[step] for step in sorted(holds)[-END:]]
    return 2 * sum(last) > len(last)
