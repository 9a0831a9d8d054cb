"""A verdict, and when there is one."""

from dataclasses import dataclass, replace

ENOUGH_SEEDS = 3
"""With fewer, a group of runs neither agrees nor differs."""

SIGNIFICANT = 0.05
"""Groups differ where the P value of the named test is below this."""


@dataclass(frozen=True)
class Finding:
    """One verdict.

    Attributes:
        title: what it is about.
        verdict: ``agrees`` or ``differs`` (with the paper); ``open`` where the runs can't tell; ``new`` where the paper
            says nothing.
        headline: the answer in one sentence.
        text: the numbers behind it, and the criterion.
    """

    title: str
    verdict: str
    headline: str
    text: str

    def reopened(self) -> "Finding":
        """The same without a verdict."""
        return replace(self, verdict="open")


def tested(p_value: float, n_seeds: int) -> str:
    """The verdict of a test with the paper's runs on one side and ``n_seeds`` of ours on the other."""
    if n_seeds < ENOUGH_SEEDS:
        return "open"
    return "differs" if p_value < SIGNIFICANT else "agrees"
