"""Attention heads and sets of heads: how they are named and read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from operator import index
from typing import NamedTuple

from lit_backdoor.functional.hooked_model import HookedModel


class Head(NamedTuple):
    """One attention head, both numbers zero-based."""

    layer: int
    head: int


HeadSet = tuple[Head, ...]
"""Heads in ascending order, each at most once; `()` is "none"."""

Heads = str | Iterable[tuple[int, int] | str]
"""How a set of heads may be given: (layer, head) pairs or names such as `"L0H2"`, or a name of the whole set."""


def head_name(layer: int, head: int) -> str:
    """Name a head.

    >>> head_name(0, 2)
    'L0H2'
    """
    return f"L{layer}H{head}"


def head_set_name(heads: Iterable[tuple[int, int]]) -> str:
    """Name a set of heads, in ascending order.

    >>> head_set_name([(0, 2), (0, 0)])
    'L0H0+L0H2'
    >>> head_set_name([])
    'none'
    """
    return "+".join(head_name(*head) for head in head_set(heads)) or "none"


def parse_head_set(name: str) -> HeadSet:
    """Read what `head_name` and `head_set_name` wrote.

    >>> parse_head_set("L1H0+L0H2")
    (Head(layer=0, head=2), Head(layer=1, head=0))
    >>> parse_head_set("none")
    ()

    Raises:
        ValueError: `name` is neither "none" nor heads joined by "+".
    """
    if name == "none":
        return ()
    matches = [re.fullmatch(r"L(\d+)H(\d+)", part) for part in name.split("+")]
    if not all(matches):
        raise ValueError(f'{name!r} is not a set of heads: write "none", "L0H2" or "L0H0+L0H2".')
    return head_set((int(m[1]), int(m[2])) for m in matches if m)


def head_set(heads: Heads) -> HeadSet:
    """Put heads in ascending order, each once.

    >>> head_set([(0, 2), "L0H0", (0, 2)])
    (Head(layer=0, head=0), Head(layer=0, head=2))

    Raises:
        ValueError: `heads` is no set of heads.
    """
    if isinstance(heads, str):
        return parse_head_set(heads)
    try:
        given = [parse_head_set(head) if isinstance(head, str) else [Head(*map(index, head))] for head in heads]
    except TypeError:  # a number where a pair belongs, or a pair of something else
        raise ValueError(
            f"{heads!r} is not a set of heads: give a list of (layer, head), such as [(0, 2)], or a name, such as "
            '"L0H2", "L0H0+L0H2" or "none".'
        ) from None
    return tuple(sorted({head for part in given for head in part}))


def all_heads(model: HookedModel) -> HeadSet:
    """All heads of all layers, layer by layer."""
    return tuple(Head(i, j) for i in range(model.cfg.n_layers) for j in range(model.cfg.n_heads))
