"""Heads ordered by role. A head's number means nothing across seeds; how much its patching costs does.

Role 1 is the head whose patching alone costs most, role 2 the next, and so on. This is a selection, made on the very
numbers that are then averaged: role 1 looks costlier, and the last role cheaper, than a head picked beforehand would.
The paper's own choice of "the most influential head" is the same selection.
"""

from collections.abc import Iterable, Sequence

from lit_backdoor.functional import Head, HeadSet, PatchingResult

RoleSet = tuple[int, ...]
"""Roles in ascending order, counted from 1; ``()`` is "none"."""


def head_order(results: Iterable[PatchingResult]) -> tuple[Head, ...]:
    """The heads by role: lowest accuracy when patched alone first; of equals, lowest logit difference."""
    singles = [one for one in results if len(one.heads) == 1]
    ordered = sorted(singles, key=lambda one: (one.recipient_accuracy, one.logit_diff, one.heads))
    return tuple(one.heads[0] for one in ordered)


def roles_of(heads: HeadSet, order: Sequence[Head]) -> RoleSet:
    """A set of heads as roles."""
    return tuple(sorted(order.index(head) + 1 for head in heads))


def by_role(results: Iterable[PatchingResult], order: Sequence[Head]) -> dict[RoleSet, PatchingResult]:
    """The results by the roles of the patched heads, smallest sets first."""
    found = {roles_of(one.heads, order): one for one in results}
    return {roles: found[roles] for roles in sorted(found, key=lambda roles: (len(roles), roles))}


def role_set_name(roles: RoleSet, n_heads: int) -> str:
    """``None``, ``Role 1``, ``Roles 2,3,4`` or ``All``: as the paper's tables, but by role."""
    if not roles:
        return "None"
    if len(roles) == n_heads:
        return "All"
    return f"{'Role' if len(roles) == 1 else 'Roles'} {','.join(map(str, roles))}"


def shown_sets(n_heads: int) -> list[RoleSet]:
    """The columns of the paper's Table 1: none, each, all but the costliest, all."""
    singles = [(role,) for role in range(1, n_heads + 1)]
    complement = [tuple(range(2, n_heads + 1))] if n_heads > 2 else []
    return [(), *singles, *complement, tuple(range(1, n_heads + 1))]
