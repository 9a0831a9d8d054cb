"""Heads ordered by rank. A head's number means nothing across seeds; how much its patching costs does.

Rank 1 is the head whose patching alone costs most, rank 2 the next, and so on. This is a selection, made on the very
numbers that are then described: rank 1 looks costlier, and the last rank cheaper, than a head picked beforehand would.
The paper's own choice of "the most influential head" is the same selection.

A set of heads by rank is text: `none`, `1`, `2+3+4`.
"""

from collections.abc import Iterable, Mapping, Sequence

from lit_backdoor.functional import Head, HeadSet

NONE = "none"


def head_order(accuracies: Mapping[HeadSet, float], ties: Mapping[HeadSet, float] | None = None) -> tuple[Head, ...]:
    """The heads by rank: lowest accuracy when patched alone first.

    Args:
        accuracies: of each set of heads, what patching it leaves.
        ties: decides between equals, the lower first; after that the lower head is first.
    """
    singles = [heads for heads in accuracies if len(heads) == 1]
    ordered = sorted(singles, key=lambda heads: (accuracies[heads], ties[heads] if ties else 0.0, heads))
    return tuple(heads[0] for heads in ordered)


def ranks_of(heads: HeadSet, order: Sequence[Head]) -> str:
    """A set of heads by rank."""
    return "+".join(map(str, sorted(order.index(head) + 1 for head in heads))) or NONE


def rank_key(ranks: str) -> tuple[int, str]:
    """Sorts sets by size, then by rank."""
    return (0, "") if ranks == NONE else (ranks.count("+") + 1, ranks)


def rank_set_name(ranks: str, n_heads: int) -> str:
    """Name a set as the paper's tables do, but by rank.

    >>> [rank_set_name(ranks, 4) for ranks in ("none", "1", "2+3+4", "1+2+3+4")]
    ['None', 'Rank 1', 'Ranks 2,3,4', 'All']
    """
    size = rank_key(ranks)[0]
    if size in (0, n_heads):
        return "All" if size else "None"
    return f"Rank{'s' if size > 1 else ''} {ranks.replace('+', ',')}"


def table_1_sets(n_heads: int) -> list[str]:
    """The columns of the paper's Table 1 by rank: none, each, all but the costliest, all."""
    ranks = [str(rank) for rank in range(1, n_heads + 1)]
    return list(dict.fromkeys([NONE, *ranks, *(["+".join(ranks[1:])] if n_heads > 2 else []), "+".join(ranks)]))


def n_heads_of(sets: Iterable[str]) -> int:
    """How many heads the model has of which these are all sets, or some and the largest."""
    return max(rank_key(ranks)[0] for ranks in sets)
