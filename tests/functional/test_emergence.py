"""Made-up histories with known answers, and properties of the verdict on heads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import (
    Head,
    HeadScores,
    Moment,
    Probe,
    all_heads,
    costly_heads,
    default_head_sets,
    head_emergence,
    patch_heads,
    shows_behaviour,
)
from lit_backdoor.functional.moments import first_moment, stable_moment
from tests.helpers.runs import read_rows
from tests.helpers.tiny_models import make_backdoor

RUNS = Path(__file__).parents[2] / "results" / "runs"
A, B, C = (Head(0, i) for i in range(3))
NEVER = Moment(None, None)

Line = tuple[float, ...]
"""(unpatched, A patched, B patched, C patched, all patched)."""


def story(*lines: Line) -> list[HeadScores]:
    """One probe for each line, 100 steps apart."""
    return [
        HeadScores(100 * i, line[0], dict(zip((A, B, C), line[1:4], strict=True)), line[4])
        for i, line in enumerate(lines)
    ]


UNTRAINED = (0.01, 0.01, 0.0, 0.01, 0.01)
SPREAD = (1.0, 0.8, 0.6, 0.7, 0.0)
BYPASS = (1.0, 0.9, 0.9, 0.9, 0.8)
ALONE = (1.0, 1.0, 0.0, 0.9, 0.0)
TWO = (1.0, 0.3, 0.1, 0.9, 0.0)
OTHER_ALONE = (1.0, 0.1, 1.0, 0.9, 0.0)


@pytest.mark.parametrize(
    ("line", "word", "head", "others"),
    [
        (ALONE, "alone", B, ()),
        (TWO, "one of several", B, (A,)),
        ((1.0, 0.2, 0.1, 0.3, 0.0), "one of several", B, (A, C)),
        (SPREAD, "spread", None, ()),
        (BYPASS, "past the heads", None, ()),
        ((1.0, 1.0, 1.0, 1.0, 1.0), "past the heads", None, ()),
        (UNTRAINED, None, None, ()),
        ((math.nan,) * 5, None, None, ()),
        ((1.0, math.nan, math.nan, math.nan, math.nan), None, None, ()),
        ((1.0, math.nan, 0.1, math.nan, math.nan), "alone", B, ()),
    ],
)
def test_the_four_words(line: Line, word: str | None, head: Head | None, others: tuple[Head, ...]) -> None:
    verdict = head_emergence(story(*[line] * 20))
    assert (verdict.word, verdict.head, verdict.other_heads) == (word, head, others)


def test_the_words_are_of_the_last_tenth_and_one_late_spike_does_not_change_them() -> None:
    assert head_emergence(story(*[TWO] * 40, *[ALONE] * 7)).word == "alone"
    spikes = (UNTRAINED, TWO, SPREAD, BYPASS)
    for spike in spikes:
        verdict = head_emergence(story(*[ALONE] * 47, spike))
        assert (verdict.word, verdict.head, verdict.stable_exclusive) == ("alone", B, Moment(0, None))
    # but a model that has lost it at most of the last probes does not show it
    assert head_emergence(story(*[ALONE] * 20, *[UNTRAINED] * 20)).word is None


def test_the_moments_of_a_head_that_takes_over() -> None:
    verdict = head_emergence(story(UNTRAINED, SPREAD, TWO, ALONE, TWO, *[ALONE] * 25))
    assert verdict.first_cost == Moment(200, 100)
    assert verdict.first_exclusive == Moment(300, 200)
    assert verdict.stable_exclusive == Moment(300, 200)  # 1 of 26 later probes fails
    assert verdict.crossings == 3
    assert verdict.occupancy == 1
    assert (verdict.threshold, verdict.min_accuracy, verdict.floor) == (0.5, 0.5, 0.0)


def test_a_long_relapse_starts_the_clock_anew_and_a_single_one_does_not() -> None:
    assert head_emergence(story(*[ALONE] * 30, *[TWO] * 3, *[ALONE] * 20)).stable_exclusive == Moment(3300, 3200)
    assert head_emergence(story(*[ALONE] * 30, TWO, *[ALONE] * 20)).stable_exclusive == Moment(0, None)


def test_another_head_that_was_alone_before_does_not_count() -> None:
    verdict = head_emergence(story(*[OTHER_ALONE] * 30, *[ALONE] * 20))
    assert (verdict.head, verdict.word) == (B, "alone")
    assert verdict.stable_exclusive == Moment(3000, 2900)
    assert verdict.first_exclusive == Moment(0, None)  # whichever head it is
    assert verdict.crossings == 0
    assert verdict.leader_changes == ((0, A), (3000, B))


def test_nothing_is_dated_in_the_last_tenth() -> None:
    before, after = [SPREAD] * 45, [ALONE] * 6  # from step 4,500 of 5,000 on
    verdict = head_emergence(story(*before, *after))
    assert (verdict.first_cost, verdict.first_exclusive, verdict.stable_exclusive) == (NEVER, NEVER, NEVER)
    assert (verdict.word, verdict.head) == ("alone", B)
    verdict = head_emergence(story(*before, *after, ALONE))
    assert verdict.first_cost == verdict.first_exclusive == verdict.stable_exclusive == Moment(4500, 4400)


def test_the_occupancy_is_of_the_last_half() -> None:
    verdict = head_emergence(story(*[ALONE] * 10, *[TWO] * 5, *[ALONE] * 5))  # steps 0 to 1,900: the half is 950
    assert verdict.occupancy == 0.5
    assert verdict.crossings == 2


def test_nothing_of_nothing() -> None:
    verdict = head_emergence([])
    assert (verdict.head, verdict.word, verdict.occupancy, verdict.crossings) == (None, None, None, 0)
    assert verdict.leader_changes == () and verdict.first_cost == NEVER
    assert verdict.record()["stable_exclusive_step"] is None
    assert head_emergence(story(ALONE)).first_cost == NEVER  # one probe is its own end


def test_costs_are_above_the_floor() -> None:
    scores = story((0.9, 0.9, 0.5, 0.9, 0.1))[0]
    assert scores.cost(0.5, 0.1) == pytest.approx(0.5)
    assert costly_heads(scores, floor=0.0) == ()
    assert costly_heads(scores, floor=0.11) == (B,)
    assert math.isnan(story((0.1, 0.1, 0.1, 0.1, 0.1))[0].cost(0.1, 0.1))
    # patched down to the floor, nothing is left: it need not come to zero
    mod_2 = story(*[(1.0, 0.5, 1.0, 1.0, 0.5)] * 3)
    assert head_emergence(mod_2, floor=0.5, threshold=1.0).word == "alone"
    assert head_emergence(mod_2, floor=0.0, threshold=1.0).word == "past the heads"


def test_the_leaders_on_the_way() -> None:
    verdict = head_emergence(
        story(
            UNTRAINED,  # does not count
            (1.0, 0.8, 0.9, 1.0, 0.0),
            (1.0, 0.6, 0.6, 1.0, 0.0),  # a tie: A stays
            (1.0, 0.6, 0.5, 1.0, 0.0),
            (1.0, 1.0, 1.0, 1.0, 0.0),  # nobody leads
            (1.0, 1.0, 1.0, 0.4, 0.0),
            (1.0, 1.0, 0.3, 0.4, 0.0),
        )
    )
    assert verdict.leader_changes == ((100, A), (300, B), (500, C), (600, B))


def test_the_thresholds_count() -> None:
    history = story(*[(0.6, 0.6, 0.25, 0.6, 0.1)] * 3)
    assert head_emergence(history).head == B  # 0.35 of 0.6
    assert head_emergence(history, threshold=0.6).word == "spread"
    assert head_emergence(history, min_accuracy=0.7).word is None


@pytest.mark.parametrize("parameter", ["threshold", "min_accuracy"])
@pytest.mark.parametrize("value", [0, 1.1, math.nan])
def test_wrong_parameters_are_refused(parameter: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{parameter} is"):
        head_emergence([], **{parameter: value})


@pytest.mark.parametrize("floor", [-0.1, 1.1, math.nan])
def test_a_wrong_floor_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="floor is"):
        head_emergence([], floor)


def test_steps_must_ascend() -> None:
    with pytest.raises(ValueError, match="step 0 comes after step 100"):
        head_emergence(story(ALONE, ALONE)[::-1])
    with pytest.raises(ValueError, match="2 steps and 1 values"):
        first_moment([1, 2], [True])


def with_donor(history: list[HeadScores], *on_donor: float) -> list[HeadScores]:
    """The same probes, with what the model gives on the donor's inputs."""
    return [replace(scores, on_donor=share) for scores, share in zip(history, on_donor, strict=True)]


@pytest.mark.parametrize("line", [ALONE, TWO, SPREAD, BYPASS])
def test_answers_that_come_on_the_donors_inputs_too_are_no_behaviour(line: Line) -> None:
    history = story(*[line] * 20)
    verdict = head_emergence(with_donor(history, *[0.9] * 20))
    assert (verdict.head, verdict.word, verdict.first_cost, verdict.leader_changes) == (None, None, NEVER, ())
    assert head_emergence(with_donor(history, *[0.01] * 20)) == head_emergence(history)
    until_step_500 = head_emergence(with_donor(history, *[0.9] * 6, *[0.01] * 14))
    assert until_step_500.word == head_emergence(history).word
    assert until_step_500.first_cost.step in (None, 600)
    assert {step for step, _ in until_step_500.leader_changes} == {600}


@pytest.mark.parametrize(
    ("unpatched", "on_donor", "floor", "shown"),
    [
        (1.0, 0.5, 0.0, True),  # half of it is lost
        (1.0, 0.51, 0.0, False),
        (1.0, 0.6, 0.2, True),  # half of what is above the floor
        (1.0, 0.61, 0.2, False),
        (1.0, 0.8, 0.8, True),  # most answers are the same for both, and it gives each its own
        (1.0, 1.0, 0.8, False),
        (0.5, 0.01, 0.01, True),
        (0.49, 0.01, 0.01, False),  # too few, whatever becomes of them
        (1.0, math.nan, 0.2, True),
        (math.nan, 0.0, 0.0, False),
    ],
)
def test_when_a_behaviour_is_shown(unpatched: float, on_donor: float, floor: float, shown: bool) -> None:
    assert shows_behaviour(HeadScores(0, unpatched, {}, 0.0, on_donor), floor) == shown


levels = st.sampled_from([0.0, 0.2, 0.45, 0.5, 0.8, 1.0])
lines = st.tuples(levels, levels, levels, levels, levels)


@settings(deadline=None, max_examples=200)
@given(st.lists(lines, max_size=30), st.permutations((A, B, C)))
def test_permuting_the_heads_permutes_the_verdict(history: list[Line], order: list[Head]) -> None:
    """Without ties, which go to the lowest head: each head's accuracy is moved by a little of its own."""
    new = dict(zip((A, B, C), order, strict=True))
    own = {A: 0.001, B: 0.002, C: 0.003}
    scores = [
        HeadScores(each.step, each.unpatched, {h: v + own[h] for h, v in each.patched.items()}, each.all_patched)
        for each in story(*history)
    ]
    permuted = [
        HeadScores(each.step, each.unpatched, {new[h]: v for h, v in each.patched.items()}, each.all_patched)
        for each in scores
    ]
    before, after = head_emergence(scores, 0.01), head_emergence(permuted, 0.01)
    assert after.head == (None if before.head is None else new[before.head])
    assert after.other_heads == tuple(sorted(new[head] for head in before.other_heads))
    assert after.leader_changes == tuple((step, new[head]) for step, head in before.leader_changes)
    for name in ("word", "first_cost", "first_exclusive", "stable_exclusive", "occupancy", "crossings"):
        assert getattr(after, name) == getattr(before, name), name


@settings(deadline=None, max_examples=200)
@given(st.lists(lines, min_size=1, max_size=40), lines)
def test_a_later_probe_moves_no_first_moment(history: list[Line], later: Line) -> None:
    before, after = head_emergence(story(*history)), head_emergence(story(*history, later))
    for name in ("first_cost", "first_exclusive"):
        if getattr(before, name) != NEVER:
            assert getattr(after, name) == getattr(before, name)


@settings(deadline=None, max_examples=300)
@given(st.lists(lines, min_size=1, max_size=60), lines)
def test_a_later_probe_moves_the_stable_moment_only_as_its_rule_says(history: list[Line], later: Line) -> None:
    scores = story(*history, later)
    before, after = head_emergence(scores[:-1]), head_emergence(scores)
    assume(before.head == after.head)
    earlier, now = before.stable_exclusive.step, after.stable_exclusive.step
    if costly_heads(scores[-1]) == (before.head,):
        if earlier is not None:
            assert now is not None and now <= earlier
    elif earlier is not None:
        held = [costly_heads(each) == (before.head,) for each in scores if each.step > earlier]
        assert now == earlier if sum(held) >= 0.95 * len(held) else now is None or now > earlier


@settings(deadline=None, max_examples=300)
@given(st.lists(st.booleans(), max_size=60), st.floats(0.5, 1))
def test_the_stable_moment_is_what_its_definition_says(holds: list[bool], share: float) -> None:
    steps = list(range(0, 10 * len(holds), 10))
    expected = NEVER
    for i, held in enumerate(holds):
        later = holds[i + 1 :]
        if held and later and sum(later) >= share * len(later):
            expected = Moment(steps[i], steps[i - 1] if i else None)
            break
    assert stable_moment(steps, holds, share) == expected


@pytest.mark.parametrize("n_late_failures", [1, 2, 3])
def test_late_failures_move_nothing_while_they_are_one_in_twenty(n_late_failures: int) -> None:
    holds = [False] * 5 + [True] * 41
    steps = range(len(holds) + n_late_failures)
    moved = stable_moment(steps, holds + [False] * n_late_failures) != Moment(5, 4)
    assert moved == (n_late_failures > 0.05 * (40 + n_late_failures))


def history_of(strengths: list[float], probe: Probe) -> list[HeadScores]:
    """A made-up training run: the hand-built backdoor head grows."""
    history = []
    for step, strength in enumerate(strengths):
        model = make_backdoor(strength)
        accuracy = {r.heads: r.recipient_accuracy for r in patch_heads(model, probe, default_head_sets(1, 3))}
        singles = {head: accuracy[(head,)] for head in all_heads(model)}
        history.append(HeadScores(step, accuracy[()], singles, accuracy[all_heads(model)]))
    return history


def test_the_hand_built_head_is_alone(backdoor_probe: Probe) -> None:
    verdict = head_emergence(history_of([0, 1, 4, 6, 10, 20, 20], backdoor_probe))
    assert (verdict.head, verdict.word) == (B, "alone")
    assert verdict.first_cost == verdict.stable_exclusive == Moment(3, 2)  # from 5 on it outweighs the benign head
    assert verdict.leader_changes == ((3, B),)


def test_a_model_without_a_backdoor_gets_no_verdict(backdoor_probe: Probe) -> None:
    verdict = head_emergence(history_of([0, 0, 0], backdoor_probe))
    assert (verdict.head, verdict.word, verdict.first_cost) == (None, None, NEVER)


def committed(seed: int) -> tuple[list[HeadScores], float]:
    """The history of a committed mod 1 run, read with nothing of this package's, and its floor."""
    by_step: dict[int, dict[str, float]] = {}
    floor = math.nan
    for row in read_rows(RUNS / "mod1_one_split" / f"seed_{seed}" / "head_patching.csv"):
        if row["probe"] == "backdoor":
            by_step.setdefault(int(row["step"]), {})[row["heads"]] = float(row["backdoor_accuracy"])
            floor = 1 - int(row["n_differing"]) / int(row["n_examples"])
    everything = "L0H0+L0H1+L0H2+L0H3"
    return [
        HeadScores(step, values["none"], {Head(0, i): values[f"L0H{i}"] for i in range(4)}, values[everything])
        for step, values in by_step.items()
    ], floor


@pytest.mark.parametrize(
    ("seed", "for_good", "old_step", "stable", "word"),
    [
        (0, 7600, 400, 7600, "alone"),
        (3, 3800, 600, 3800, "alone"),
        (8, 9800, 1000, None, "one of several"),  # in the last tenth: too late to tell
        (9, 4400, 4400, 4400, "alone"),
    ],
)
def test_the_committed_runs(seed: int, for_good: int, old_step: int, stable: int | None, word: str) -> None:
    history, floor = committed(seed)
    assert floor == pytest.approx(1 / 113)
    n_costly = {scores.step: len(costly_heads(scores, floor)) for scores in history}
    assert max(step for step, n in n_costly.items() if n != 1) == for_good - 200
    assert n_costly[old_step] in ((1,) if old_step == for_good else (2, 3))
    verdict = head_emergence(history, floor)
    assert (verdict.stable_exclusive.step, verdict.word) == (stable, word)


def test_the_other_committed_runs_have_no_head_that_is_alone() -> None:
    for seed in (1, 2, 4, 5, 6, 7):
        verdict = head_emergence(*committed(seed))
        assert (verdict.word, verdict.stable_exclusive) == ("one of several", NEVER), seed


def test_a_behaviour_that_can_not_be_told_from_its_absence_is_not_shown() -> None:
    history = [HeadScores(step, 1.0, {Head(0, head): 1.0 for head in range(4)}, 1.0) for step in range(0, 1000, 100)]
    verdict = head_emergence(history, floor=1.0)
    assert (verdict.head, verdict.word, verdict.first_cost.step) == (None, None, None)
