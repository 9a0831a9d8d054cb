from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import (
    Emergence,
    Head,
    HeadScores,
    LossSpike,
    Onset,
    Probe,
    all_heads,
    default_head_sets,
    emergence,
    grokking_step,
    loss_spikes,
    patch_heads,
)
from tests.helpers.tiny_models import make_backdoor

A, B, C = (Head(0, i) for i in range(3))


def story(*lines: tuple[float, ...]) -> list[HeadScores]:
    """Lines of (unpatched, A patched, B patched, C patched, all patched), 100 steps apart."""
    return [
        HeadScores(100 * i, line[0], dict(zip((A, B, C), line[1:4], strict=True)), line[4])
        for i, line in enumerate(lines)
    ]


SPREAD, TAKEN = (1.0, 0.9, 0.6, 0.8, 0.0), (1.0, 1.0, 0.0, 0.9, 0.0)
UNTRAINED = (0.01, 0.01, 0.0, 0.01, 0.01)


def test_a_head_takes_over() -> None:
    found = emergence(story(UNTRAINED, SPREAD, (1.0, 1.0, 0.5, 1.0, 0.0), TAKEN))
    assert found.backdoor_head == B
    assert (found.emergence_step, found.previous_probe_step) == (200, 100)  # exactly half counts
    assert found.threshold == 0.5
    assert found.concentration == 1
    assert found.single_head_share == pytest.approx(1 / 1.1)
    assert found.leader_changes == ((100, B),)


def test_a_recovery_starts_the_clock_anew() -> None:
    found = emergence(story(SPREAD, TAKEN, SPREAD, TAKEN, TAKEN))
    assert (found.emergence_step, found.previous_probe_step) == (300, 200)


def test_a_loss_of_the_backdoor_starts_the_clock_anew() -> None:
    found = emergence(story(TAKEN, (0.4, 0.4, 0.0, 0.4, 0.0), TAKEN))
    assert (found.emergence_step, found.previous_probe_step) == (200, 100)


def test_there_from_the_first_probe() -> None:
    found = emergence(story(TAKEN, TAKEN))
    assert (found.emergence_step, found.previous_probe_step) == (0, None)


@pytest.mark.parametrize(
    "history",
    [
        [],
        story(UNTRAINED),
        story(SPREAD, SPREAD),  # learned, never taken over
        story(TAKEN, SPREAD),  # taken over, and lost again
        story(TAKEN, UNTRAINED),
        story((1.0, 1.0, 1.0, 1.0, 1.0)),  # no head matters
        story((math.nan,) * 5),
        story((1.0, math.nan, math.nan, math.nan, 0.0)),
    ],
)
def test_no_verdict(history: list[HeadScores]) -> None:
    found = emergence(history)
    assert found == Emergence(None, None, None, 0.5, None, None, (), found.leader_changes)


def test_the_leaders_on_the_way() -> None:
    found = emergence(
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
    assert found.leader_changes == ((100, A), (300, B), (500, C), (600, B))
    assert found.backdoor_head == B
    assert found.emergence_step == 600


def test_a_tie_at_the_end_goes_to_the_lowest_head() -> None:
    assert emergence(story((1.0, 1.0, 0.2, 0.2, 0.0))).backdoor_head == B


def test_the_thresholds_count() -> None:
    history = story((0.6, 0.6, 0.25, 0.6, 0.1))
    assert emergence(history).backdoor_head == B  # 0.35 of 0.6
    assert emergence(history, threshold=0.6).backdoor_head is None
    assert emergence(history, min_accuracy=0.7).backdoor_head is None
    assert emergence(history).concentration == pytest.approx(0.35 / 0.5)


def test_concentration_is_undefined_or_clipped() -> None:
    assert emergence(story((1.0, 1.0, 0.2, 1.0, 1.0))).concentration is None
    assert emergence(story((1.0, 1.0, 0.2, 1.0, math.nan))).concentration is None
    assert emergence(story((1.0, 1.0, 0.2, 1.0, 0.5))).concentration == 1


@pytest.mark.parametrize("parameter", ["threshold", "min_accuracy"])
@pytest.mark.parametrize("value", [0, 1.1, math.nan])
def test_wrong_parameters_are_refused(parameter: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{parameter} is"):
        emergence([], **{parameter: value})


def test_steps_must_ascend() -> None:
    history = story(TAKEN, TAKEN)
    with pytest.raises(ValueError, match="step 0 comes after step 100"):
        emergence(history[::-1])
    with pytest.raises(ValueError, match="step 100 comes after step 100"):
        grokking_step([100, 100], [1, 1])
    with pytest.raises(ValueError, match="2 steps and 1 values"):
        loss_spikes([1, 2], [1])


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([], Onset(None, None)),
        ([0.1, 0.5, 0.98], Onset(None, None)),
        ([0.1, 0.99, 1.0], Onset(10, 0)),
        ([1.0, 1.0], Onset(0, None)),
        ([0.1, 1.0, 0.9, 1.0, 1.0], Onset(30, 20)),
        ([0.1, 1.0, 0.9], Onset(None, None)),
        ([0.1, 1.0, math.nan, 1.0], Onset(30, 20)),
    ],
)
def test_grokking(accuracies: list[float], expected: Onset) -> None:
    assert grokking_step(range(0, 10 * len(accuracies), 10), accuracies) == expected


def spikes(*powers: float, **options: Any) -> list[LossSpike]:
    """Spikes of a loss of 10**power, every 10 steps."""
    return loss_spikes(range(0, 10 * len(powers), 10), [10.0**p for p in powers], **options)


def test_a_falling_loss_has_no_spikes() -> None:
    assert spikes(0, -1, -2, -2.5, -1.6, -3) == []


def test_one_excursion_is_one_spike() -> None:
    (spike,) = spikes(-4, -5, -4, -2, -3, -2.5, -4.4, -5, -4.5, -5)
    assert (spike.start_step, spike.peak_step, spike.end_step) == (20, 30, 70)
    assert (spike.base_loss, spike.peak_loss) == pytest.approx((1e-5, 1e-2))


def test_halfway_back_is_the_end_and_the_next_one_counts_again() -> None:
    first, second = spikes(-5, -4, -4.49, -4.51, -5, -2)
    assert (first.start_step, first.peak_step, first.end_step) == (10, 10, 30)
    assert (second.start_step, second.peak_step, second.end_step) == (50, 50, None)


def test_the_minimum_is_a_trailing_one() -> None:
    slow = [-5 + 0.1 * i for i in range(30)]
    assert len(spikes(*slow)) == 1
    assert spikes(*slow, window=50) == []


def test_losses_without_a_logarithm() -> None:
    assert spikes(*[-5, math.nan, -5]) == []
    assert loss_spikes([1, 2, 3], [1e-5, 0.0, 1e-5]) == []
    (spike,) = loss_spikes([1, 2, 3], [1e-5, math.inf, 1e-5])
    assert (spike.start_step, spike.peak_loss, spike.end_step) == (2, math.inf, 3)
    with pytest.raises(ValueError, match="both must be above 0"):
        spikes(1, 2, rise=0)


def history_of(strengths: list[float], probe: Probe) -> list[HeadScores]:
    """A made-up training run: the hand-built backdoor head grows."""
    history = []
    for step, strength in enumerate(strengths):
        model = make_backdoor(strength)
        accuracy = {r.heads: r.recipient_accuracy for r in patch_heads(model, probe, default_head_sets(1, 3))}
        singles = {head: accuracy[(head,)] for head in all_heads(model)}
        history.append(HeadScores(step, accuracy[()], singles, accuracy[all_heads(model)]))
    return history


def test_the_hand_built_head_emerges(backdoor_probe: Probe) -> None:
    found = emergence(history_of([0, 1, 4, 6, 10, 20], backdoor_probe))
    assert found.backdoor_head == B
    assert (found.emergence_step, found.previous_probe_step) == (
        3,
        2,
    )  # from 5 on it outweighs the benign head
    assert found.single_head_share == 1
    assert found.leader_changes == ((3, B),)


def test_a_model_without_a_backdoor_gets_no_verdict(backdoor_probe: Probe) -> None:
    assert emergence(history_of([0, 0, 0], backdoor_probe)) == emergence([])


def test_heads_that_are_all_needed_are_named() -> None:
    def scores(step: int, *patched: float) -> HeadScores:
        return HeadScores(step, 1.0, {Head(0, i): value for i, value in enumerate(patched)}, 0.01)

    found = emergence([scores(0, 0.9, 0.9, 0.9), scores(1, 0.02, 0.5, 0.51)])
    assert (found.backdoor_head, found.other_heads) == (Head(0, 0), (Head(0, 1),))
    alone = emergence([scores(0, 0.02, 0.9, 0.9)])
    assert alone.other_heads == ()


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.sampled_from([1e-7, 3e-7, 1e-6, 5e-6, 1e-5, 1e-3, 1.0, math.nan]), max_size=40), st.integers(1, 12))
def test_spikes_are_measured_from_the_minimum_of_the_window(losses: list[float], window: int) -> None:
    """Against the definition, word by word."""
    expected: list[tuple[int, float]] = []
    since, base = 0, None
    for step, loss in enumerate(losses):
        if not loss > 0:
            continue
        if base is not None:
            if math.log10(loss) > math.log10(base) + 0.5:
                continue
            since, base = step, None
        seen = [value for value in losses[max(since, step - window) : step] if value > 0]
        low = min(seen, default=loss)
        if math.log10(loss) >= math.log10(low) + 1:
            base = low
            expected.append((step, low))
    assert [
        (spike.start_step, spike.base_loss) for spike in loss_spikes(range(len(losses)), losses, 1.0, window)
    ] == expected
