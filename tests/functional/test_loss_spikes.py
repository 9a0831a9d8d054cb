"""Loss spikes: made-up curves, and an oracle written out."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import LossSpike, find_loss_spikes


def spikes(*powers: float, **options: Any) -> list[LossSpike]:
    """Spikes of a loss of 10**power, every 10 steps."""
    return find_loss_spikes(range(0, 10 * len(powers), 10), [10.0**p for p in powers], **options)


def test_a_falling_loss_has_no_spikes() -> None:
    assert spikes(0, -1, -2, -2.5, -2.1, -3) == []
    assert find_loss_spikes([], []) == [] == spikes(1.0)


def test_one_excursion_is_one_spike() -> None:
    (spike,) = spikes(-4, -5, -4, -2, -3, -2.9, -4.4, -5, -4.6, -5)
    assert (spike.start_step, spike.peak_step, spike.end_step) == (30, 30, 60)  # half-way is -3.5
    assert spike.prominence == pytest.approx(3)
    assert (spike.base_loss, spike.peak_loss) == pytest.approx((1e-5, 1e-2))


def test_peaks_inside_a_restless_stretch_have_their_own_prominence() -> None:
    powers = (-6, -1, -3, -1.5, -3.2, -2, -6)
    assert [(spike.peak_step, round(spike.prominence, 9)) for spike in spikes(*powers)] == [
        (10, 5), (30, 1.5), (50, 1.2),
    ]  # fmt: skip
    assert [spike.peak_step for spike in spikes(*powers, prominence=2.0)] == [10]
    assert [spike.peak_step for spike in spikes(*powers, prominence=1.4)] == [10, 30]


def test_what_is_up_at_the_end_has_no_end() -> None:
    (spike,) = spikes(-4, -6, -1, -1.2)
    assert (spike.peak_step, spike.end_step, spike.prominence) == (20, None, pytest.approx(5))
    (last,) = spikes(-4, -6, -5, -3)
    assert (last.start_step, last.peak_step, last.end_step) == (30, 30, None)
    # not one spike until the end, but as many as there are peaks
    assert [(s.peak_step, s.end_step) for s in spikes(-6, -1, -3, -1.5, -3, -1.4)] == [
        (10, None), (30, 40), (50, None),
    ]  # fmt: skip


def test_coming_back_half_way_is_an_end_even_before_the_run_s() -> None:
    (spike,) = spikes(-6, -2, -4, -4.2)
    assert (spike.end_step, spike.prominence) == (20, pytest.approx(4))


def test_losses_without_a_logarithm() -> None:
    assert spikes(*[-5, math.nan, -5]) == []
    assert find_loss_spikes([1, 2, 3], [1e-5, 0.0, 1e-5]) == []
    (spike,) = find_loss_spikes([1, 2, 3], [1e-5, math.inf, 1e-5])
    assert (spike.start_step, spike.peak_step, spike.peak_loss, spike.end_step) == (2, 2, math.inf, 3)
    with pytest.raises(ValueError, match="prominence is 0"):
        spikes(1, 2, prominence=0)
    with pytest.raises(ValueError, match="2 steps and 1 values"):
        find_loss_spikes([1, 2], [1])


powers = st.lists(st.sampled_from([-7.0, -6.5, -6.0, -5.2, -5.0, -3.0, -1.0, 0.0]), max_size=30)


@settings(deadline=None, max_examples=200)
@given(powers)
def test_spikes_are_the_peaks_by_the_definition(history: list[float]) -> None:
    """Against the definition, word by word, on curves without neighbours of one height."""
    history = [each for each, other in pairwise([*history, math.nan]) if each != other]
    expected = []
    for i in range(1, len(history)):
        if not (history[i] > history[i - 1] and (i + 1 == len(history) or history[i] > history[i + 1])):
            continue
        left = next((j for j in reversed(range(i)) if history[j] > history[i]), -1)
        right = next((j for j in range(i, len(history)) if history[j] > history[i]), None)
        base = min(history[left + 1 : i])
        if right is not None:
            base = max(base, min(history[i:right]))
        if history[i] - base >= 0.5:
            half = (history[i] + base) / 2
            end = next((10 * j for j in range(i, len(history)) if history[j] <= half + 1e-9), None)
            start = 10 * (max(j for j in range(i) if history[j] <= half + 1e-9) + 1)
            expected.append((start, 10 * i, end))
    assert [(s.start_step, s.peak_step, s.end_step) for s in spikes(*history, prominence=0.4999)] == expected


def test_forty_thousand_steps_take_no_time() -> None:
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=40_000)) * 0.1 - 10
    assert len(find_loss_spikes(range(40_000), 10.0**walk)) > 100
