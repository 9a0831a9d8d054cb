"""How often the report's verdicts are right, on data whose answer is known."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from lit_backdoor.report.comparison import curve_rows
from lit_backdoor.report.declared import declared
from lit_backdoor.report.published import paper_table
from lit_backdoor.report.statements import compare, logit

DRAWS = 25
PAPER = paper_table("Table 2")
Draw = Callable[[np.random.Generator], pd.DataFrame]


def runs(accuracies: np.ndarray) -> pd.DataFrame:
    """Runs with these accuracies by rank, [run, 4], as the report has them."""
    table = pd.DataFrame(np.sort(accuracies, axis=1), columns=["1", "2", "3", "4"])
    return table.assign(none=1.0, state="generalised", floor=1 / 113, **{"1+2+3+4": 1 / 113})


def verdicts(draw: Draw) -> Counter[str]:
    """What the report says over `DRAWS` data sets: `primary: agrees`, ..."""
    rng, said = np.random.default_rng(0), Counter[str]()
    for _ in range(DRAWS):
        primary, one_head, ranks = compare(draw(rng))
        said.update([f"primary: {primary.verdict}", f"one head: {one_head.verdict}", f"ranks: {ranks.verdict}"])
    return said


def test_ten_runs_with_the_papers_own_rates_agree_or_are_inconclusive() -> None:
    said = verdicts(lambda rng: PAPER.iloc[rng.integers(len(PAPER), size=10)].assign(state="generalised"))
    print(f"the paper's own experiments, drawn anew {DRAWS} times: {dict(said)}")
    assert said["primary: differs"] + said["one head: differs"] + said["ranks: differs"] <= 1
    assert said["primary: agrees"] >= DRAWS // 4  # the primary endpoint can agree: its margin is wide enough


@pytest.mark.parametrize(
    "garbage",
    [
        lambda rng: runs(rng.uniform(0, 1, (10, 4))),
        lambda rng: runs(rng.normal(0.5, 0.1, (10, 4)).clip(0, 1)),
        lambda rng: runs(np.full((10, 4), 1.0)),
        lambda rng: runs(np.zeros((10, 4))),
    ],
    ids=["uniform", "about a half", "nothing needed", "everything needed"],
)
def test_garbage_never_agrees(garbage: Draw) -> None:
    said = verdicts(garbage)
    print(f"garbage, {DRAWS} times: {dict(said)}")
    assert not [word for word in said if word.endswith("agrees")]


def test_few_runs_are_inconclusive_whatever_they_say() -> None:
    few = runs(np.full((declared().min_seeds - 1, 4), 0.99))
    assert {said.verdict for said in compare(few)} == {"inconclusive"}


def test_models_of_another_number_of_heads_are_compared_in_nothing() -> None:
    five = runs(np.full((6, 4), 0.5)).assign(**{"5": 0.9, "1+2+3+4+5": 0.0})
    assert compare(runs(np.full((6, 4), 0.5))) and compare(five) == []


def test_every_state_is_told_apart_and_none_is_left_out() -> None:
    table = pd.concat([runs(np.full((n, 4), 0.1)).assign(state=state)
                       for state, n in (("not fitted", 2), ("generalised", 5), ("fitted", 1))])  # fmt: skip
    for said in compare(table)[:2]:
        assert [said.text.index(part) for part in ("all 8:", "generalised (5):", "fitted (1):", "not fitted (2):")]


def at_threshold(table: pd.DataFrame) -> tuple[int, float]:
    """In how many runs exactly one head is costly, by the statement and by the curve beside it."""
    (said,) = [each for each in compare(table) if each.title == "Exactly one costly head"]
    curve = curve_rows(table).query("threshold == 0.5").iloc[0]  # of all our runs
    assert curve["n_runs"] == len(table)
    return int(said.headline.split()[6]), round(curve["rate"] * len(table), 9)


def test_the_curve_counts_what_the_statement_beside_it_counts() -> None:
    """A run without the backdoor has no costly head, but is one of the runs."""
    there = runs(np.array([[0.1, 0.9, 0.9, 0.9]] * 4))
    gone = runs(np.array([[0.0, 0.03, 0.03, 0.03]] * 4)).assign(none=0.03, state="not fitted")
    assert at_threshold(pd.concat([there, gone])) == (4, 4)


def test_what_is_left_of_no_backdoor_is_that_of_the_runs_own_task() -> None:
    """Leaving 51%, a head costs 49.4% above the floor of 113 numbers, and 50.7% above that of 29."""
    table = runs(np.array([[0.51, 0.9, 0.9, 0.9]] * 5))
    assert at_threshold(table) == (0, 0) and at_threshold(table.assign(floor=1 / 29)) == (5, 5)


def test_logits_of_0_and_1_are_as_declared() -> None:
    assert logit(0.5) == 0 and logit(0.0) == logit(declared().closest_to_0_and_1) == pytest.approx(-logit(1.0))
    assert declared().thresholds == [round(0.1 + 0.05 * step, 2) for step in range(18)]
