"""Heads by rank."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import Head
from lit_backdoor.functional.ranks import head_order, ranks_of


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=4, max_size=4, unique=True), st.permutations(range(4)))
def test_ranks_are_a_property_of_the_costs(costs: list[int], order: list[int]) -> None:
    singles = {(Head(0, head),): 1 - cost / 100 for head, cost in enumerate(costs)}
    renumbered = {(Head(0, order[heads[0].head]),): value for heads, value in singles.items()}
    pair = (singles, renumbered)
    left = [{ranks_of(heads, head_order(some)): value for heads, value in some.items()} for some in pair]
    assert left[0] == left[1] == {str(rank): value for rank, value in enumerate(sorted(singles.values()), start=1)}
