"""The state of a run and the warning, on made-up curves and on the committed runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import judge_run, lowest_training_accuracy, stuck_since
from lit_backdoor.functional.run_state import Curve, RuleMoments
from tests.helpers.runs import read_rows

RUNS = Path(__file__).parents[2] / "results" / "runs"


def curve(*values: float) -> dict[int, float]:
    return {100 * index: value for index, value in enumerate(values)}


def metrics(train: Curve, val: Curve, **losses: Curve) -> dict[str, Curve]:
    named = {"train/sum_accuracy": train, "val/sum_accuracy": val}
    return named | {f"val/{name}": loss for name, loss in losses.items()}


SMALL, LARGE = math.exp(-5.1), math.exp(-4.9)
UP = curve(0.0, 0.99, 1, 1, 1, 1, 1, 1)
LATER = curve(0.0, 0.5, 0.99, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("train", "val", "loss", "expected"),
    [
        (curve(0.1, 0.98, 0.98), curve(0.1, 0.1, 0.1), curve(4, 4, 4), ("not fitted", None, None)),
        (UP, curve(*[0.5] * 8), curve(*[LARGE] * 8), ("fitted", 100, None)),
        (UP, LATER, curve(*[LARGE] * 8), ("fitted", 100, None)),  # 99%, but the loss is not small
        (UP, LATER, curve(4, 4, LARGE, *[SMALL] * 5), ("generalised", 100, 300)),
        (UP, curve(*[0.98] * 8), curve(*[SMALL] * 8), ("fitted", 100, None)),
        # one spike at the end is no state, and moves no date
        (curve(*UP.values(), 0.2), curve(*LATER.values(), 0.2), curve(*[SMALL] * 8, 9), ("generalised", 100, 200)),
        # lost for good: the state says so, the date stays
        (UP, LATER, curve(4, 4, SMALL, *[LARGE] * 5), ("fitted", 100, 200)),
        (curve(0, 1, 1, *[0.5] * 5), curve(*[0] * 8), curve(*[4] * 8), ("not fitted", 100, None)),
        ({}, LATER, curve(*[SMALL] * 8), (None, None, 200)),
        (curve(math.nan, math.nan), curve(1, 1), curve(SMALL, SMALL), ("not fitted", None, 0)),
    ],
)
def test_states(train: Curve, val: Curve, loss: Curve, expected: tuple[str | None, int | None, int | None]) -> None:
    state = judge_run(metrics(train, val, loss=loss))
    assert (state.state, state.fitted_step, state.generalised_step) == expected


def test_every_rule_counts() -> None:
    one = {"train/a_accuracy": UP, "val/a_accuracy": UP, "val/a_loss": curve(*[SMALL] * 8)}
    other = {
        "train/b_accuracy": curve(0, 0, 0, 1, 1, 1, 1, 1),
        "val/b_accuracy": UP,
        "val/b_loss": curve(4, 4, 4, 4, SMALL, SMALL, SMALL, SMALL),
    }
    state = judge_run(one | other)
    assert (state.state, state.fitted_step, state.generalised_step) == ("generalised", 300, 400)
    assert state.by_rule == {"a": RuleMoments(100, 100), "b": RuleMoments(300, 400)}
    assert state.loss_of == "every rule"
    assert state.record() == {
        "state": "generalised", "fitted_step": 300, "generalised_step": 400, "validation_loss_of": "every rule",
        "a_fitted_step": 100, "a_generalised_step": 100, "b_fitted_step": 300, "b_generalised_step": 400,
    }  # fmt: skip


def test_the_loss_of_all_rules_stands_in_for_that_of_each_and_is_named() -> None:
    rules: dict[str, Curve] = {f"{stage}/{rule}_accuracy": UP for stage in ("train", "val") for rule in "ab"}
    own: dict[str, Curve] = {"val/a_loss": curve(*[SMALL] * 8), "val/b_loss": curve(*[LARGE] * 8)}
    overall: dict[str, Curve] = {"val/loss": curve(*[SMALL] * 8)}
    each = judge_run(rules | own | overall)
    assert (each.loss_of, each.generalised_step, each.by_rule["a"].generalised_step) == ("every rule", None, 100)
    together = judge_run(rules | {"val/a_loss": own["val/a_loss"]} | overall)  # b's own is missing
    assert (together.loss_of, together.generalised_step) == ("all rules together", 100)
    alone = judge_run(rules)
    assert (alone.loss_of, alone.state, alone.generalised_step) == ("not recorded", "generalised", 100)


def test_no_metrics_no_state() -> None:
    assert judge_run({}).record() == {
        "state": None, "fitted_step": None, "generalised_step": None, "validation_loss_of": "not recorded",
    }  # fmt: skip


def test_progress_and_fitting_are_not_being_stuck() -> None:
    steps = list(range(0, 2001, 10))
    assert stuck_since(steps, [0.7] * len(steps)) == 0
    assert stuck_since(steps[:50], [0.7] * 50) is None  # 490 steps are too few
    assert stuck_since(steps, [min(0.7 + step / 40_000, 0.9) for step in steps]) is None  # a point in 400 steps
    stairs = [0.7 + 0.02 * (step // 1000) for step in steps]
    assert stuck_since(steps, stairs) is None  # the last step is progress
    assert stuck_since(steps[:-1], stairs[:-1]) == 1000
    assert stuck_since(steps, [0.99, *[0.1] * 200]) is None  # it fitted once: a spike is another matter
    assert stuck_since(steps, [math.nan] * len(steps)) == 0
    assert stuck_since([], []) is None


@settings(deadline=None)
@given(st.lists(st.floats(0, 0.98), min_size=1, max_size=40), st.integers(1, 200))
def test_stuck_is_what_its_rule_says(accuracies: list[float], interval: int) -> None:
    steps = [interval * index for index in range(len(accuracies))]
    record, at = accuracies[0], 0
    for step, accuracy in zip(steps, accuracies, strict=True):
        if accuracy >= record + 0.01:
            record, at = accuracy, step
    assert stuck_since(steps, accuracies) == (at if steps[-1] - at >= 500 else None)


def committed(run: Path) -> dict[str, dict[int, float]]:
    rows = read_rows(run / "metrics.csv")
    return {name: {int(row["step"]): float(row[name]) for row in rows if row[name]} for name in rows[0]}


EXPECTED = {  # state, and the first step at which the benign rule's training accuracy is 99%
    **{f"mod1_one_split/seed_{seed}": ("generalised", None) for seed in (0, 2, 6, 8, 9)},
    **{f"mod1_one_split/seed_{seed}": ("fitted", None) for seed in (1, 5)},
    **{f"mod1_one_split/seed_{seed}": ("not fitted", None) for seed in (4, 7)},
    "mod1_one_split/seed_3": ("fitted", 2210),
    "clean/seed_0": ("generalised", 160),
    "mod7_one_split/seed_0": ("generalised", 330),
    "mod17_one_split/seed_0": ("fitted", 1480),
    "mod37_one_split/seed_0": ("fitted", 1640),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_committed_runs(name: str) -> None:
    curves = committed(RUNS / name)
    state, benign_step = EXPECTED[name]
    judged = judge_run(curves)
    assert judged.state == state
    assert (judged.fitted_step is None) == (state == "not fitted")
    if benign_step is not None:
        assert judged.by_rule["benign"].fitted_step == benign_step
    elif judged.fitted_step is not None:
        assert judged.fitted_step <= 400
    lowest = lowest_training_accuracy(curves)
    steps, values = list(lowest), list(lowest.values())
    warned = [n for n in range(1, len(steps) + 1) if stuck_since(steps[:n], values[:n]) is not None][:1]
    assert [steps[n - 1] for n in warned] == {"mod1_one_split/seed_4": [1750], "mod1_one_split/seed_7": [1190]}.get(
        name, []
    )
