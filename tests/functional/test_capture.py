"""When attention was captured: made-up histories with known answers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_backdoor.functional import AttentionShift, Head, capture_record
from lit_backdoor.functional.moments import Moment, came_before

A, B = Head(0, 0), Head(0, 1)


def history(*moved: tuple[float, float]) -> list[AttentionShift]:
    return [AttentionShift(100 * i, {A: a, B: b}) for i, (a, b) in enumerate(moved)]


RISING = history(*[(0.0, 0.6)] * 3, (0.2, 0.5), (0.41, 0.5), (0.5, 0.4), *[(0.8, 0.4)] * 14)


def test_the_capture_is_half_of_the_end_and_the_lag_is_to_the_first_cost() -> None:
    record = capture_record(RISING, 900)
    assert record == {
        "capture_head": "L0H0", "capture_step": 400, "capture_previous_step": 300, "capture_lag": 500
    }  # fmt: skip
    assert capture_record(RISING, 100)["capture_lag"] == -300
    assert capture_record(RISING, None)["capture_lag"] is None


def test_what_never_moves_or_moves_at_the_very_end_has_no_date() -> None:
    nothing = dict.fromkeys(("capture_head", "capture_step", "capture_previous_step", "capture_lag"))
    assert capture_record([], 100) == nothing
    assert capture_record(history(*[(0.09, 0.05)] * 20), 100) == nothing
    late = capture_record(history(*[(0.0, 0.0)] * 19, (0.9, 0.0)), 100)
    assert late == nothing | {"capture_head": "L0H0"}
    with pytest.raises(ValueError, match="step 0 comes after step 100"):
        capture_record(RISING[1::-1], 100)


@pytest.mark.parametrize(
    "one, other, first",
    [
        ((200, 150), (1000, 900), True),
        ((200, 150), (400, 200), True),  # (150, 200] and (200, 400]
        ((192, 160), (400, 0), None),  # a date inside the other's interval: nothing is known
        ((1000, 900), (200, 150), False),
        ((200, None), (200, 100), None),  # from the first measurement on: since when is not known
        ((None, None), (400, 0), None),
    ],
)
def test_which_came_first_is_known_where_the_intervals_lie_apart(one: Any, other: Any, first: bool | None) -> None:
    assert came_before(Moment(*one), Moment(*other)) is first
    assert came_before(Moment(*other), Moment(*one)) is (None if first is None else not first)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_heads_by_other_names_change_nothing_but_the_name(moved: list[tuple[float, float]]) -> None:
    one, other = capture_record(history(*moved), 500), capture_record(history(*[pair[::-1] for pair in moved]), 500)
    if moved[-1][0] != moved[-1][1]:
        assert one["capture_step"] == other["capture_step"]
        assert (one["capture_head"], other["capture_head"]) in ((None, None), ("L0H0", "L0H1"), ("L0H1", "L0H0"))
