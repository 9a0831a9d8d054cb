"""Which heads serve one rule of a model that has several."""

from __future__ import annotations

from dataclasses import dataclass

from lit_backdoor.functional.heads import HeadSet
from lit_backdoor.functional.shapley import ShapleyResult


@dataclass(frozen=True)
class RuleHeads:
    """Which heads serve one rule beside the first, from patching all sets of heads.

    Attributes:
        needs: Shapley values of the rule's accuracy while benign activations are patched into its run.
        suffices: Shapley values of the rule's accuracy while its activations are patched into the benign run.
        smallest: the smallest set whose patching takes the rule down to chance.
    """

    needs: ShapleyResult
    suffices: ShapleyResult
    smallest: HeadSet | None
