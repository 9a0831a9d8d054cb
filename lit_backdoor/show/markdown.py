"""Results as Markdown tables."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from lit_backdoor.functional import (
    HeadAttribution,
    HeadSet,
    PatchingResult,
    PathPatchingResult,
    RuleHeads,
    ShapleyResult,
    head_name,
    head_set_name,
    overlap,
)


def paper_name(heads: HeadSet, everything: HeadSet) -> str:
    """A set of heads as the paper's tables name it: ``None``, ``Head 3`` (one-based), ``Heads 1,3,4`` or ``All``.

    Of a model with several layers, which the paper does not have, it is ``L1H2``, as everywhere else.

    Args:
        heads: the set.
        everything: all heads of the model.
    """
    if not heads:
        return "None"
    if len(heads) == len(everything):
        return "All"
    if any(head.layer > 0 for head in everything):
        return head_set_name(heads)
    return f"{'Head' if len(heads) == 1 else 'Heads'} {','.join(str(head.head + 1) for head in heads)}"


def patching_markdown(results: Sequence[PatchingResult], as_paper: bool = True) -> str:
    """Table 1 of the paper: the recipient's accuracy in percent after patching nothing, each head, the best head's
    complement, and all heads. Heads of several layers, which the paper does not have, are named ``L1H2``.

    Args:
        results: of one probe and ablation.
        as_paper: whether heads of one layer are named as in the paper.
    """
    everything = max((result.heads for result in results), key=len)
    n_heads = len(everything)
    singles = [result for result in results if len(result.heads) == 1]
    culprit = min(singles, key=lambda result: result.recipient_accuracy).heads
    shown = [result for result in results if len(result.heads) in (0, 1, n_heads)]
    complement = [
        result for result in results if len(result.heads) == n_heads - 1 > 1 and culprit[0] not in result.heads
    ]
    shown = sorted(shown + complement, key=lambda result: len(result.heads))
    names = [paper_name(result.heads, everything) for result in shown]
    if everything[-1].layer > 0 or not as_paper:
        several = {result.heads: head_name(*result.heads[0]) for result in singles}
        several |= {result.heads: f"All but {head_name(*culprit[0])}" for result in complement}
        names = [several.get(result.heads, name) for result, name in zip(shown, names, strict=True)]
    name = results[0].recipient.capitalize()
    row = [f"{name} Accuracy", *(f"{result.recipient_accuracy:.2%}" for result in shown)]
    return markdown_table(["Patched Heads", *names], [row])


def all_sets_markdown(results: Sequence[PatchingResult]) -> str:
    """Every set of heads with everything that was measured."""
    return scores_markdown("heads", {head_set_name(result.heads): result for result in results})


def scores_markdown(patched: str, results: Mapping[str, PatchingResult | PathPatchingResult]) -> str:
    """A row for everything that was patched, with all its numbers.

    Args:
        patched: what was patched, for the first column.
        results: of one probe and ablation, by name.
    """
    first = next(iter(results.values()))
    header = [patched, f"{first.recipient} acc.", f"{first.donor} acc.", "other", "logit diff.", "log prob.", "KL"]
    rows = [
        [
            name,
            f"{result.recipient_accuracy:.2%}",
            f"{result.donor_accuracy:.2%}",
            f"{result.other_rate:.2%}",
            f"{result.logit_diff:.2f}",
            f"{result.log_prob:.3f}",
            f"{result.kl:.3f}",
        ]
        for name, result in results.items()
    ]
    return markdown_table(header, rows)


def attribution_markdown(results: Sequence[HeadAttribution]) -> str:
    """Figure 2 in numbers, and what the paper's raw contributions leave out."""
    header = ["head", "top in", "mean logit", "centred", "logit diff."]
    rows = [
        [
            head_name(*result.head),
            f"{result.top_count} of {result.n_examples}",
            f"{result.mean_logit:.3f}",
            f"{result.mean_logit_centered:.3f}",
            f"{result.mean_logit_diff:.3f}",
        ]
        for result in results
    ]
    return markdown_table(header, rows)


def shapley_markdown(named: dict[str, ShapleyResult]) -> str:
    """Shapley values, one column per measured quantity, with their sum."""
    heads = list(next(iter(named.values())).values)
    rows = [[head_name(*head), *(f"{result.values[head]:.4f}" for result in named.values())] for head in heads]
    rows.append(["sum", *(f"{result.total:.4f}" for result in named.values())])
    return markdown_table(["head", *named], rows)


def rules_markdown(rules: Mapping[str, RuleHeads]) -> str:
    """Which head serves which rule: Shapley values side by side, in percentage points of accuracy."""
    results = {f"{rule} needs": result.needs for rule, result in rules.items()}
    results |= {f"{rule} suffices": result.suffices for rule, result in rules.items()}
    heads = list(next(iter(results.values())).values)
    rows = [[head_name(*head), *(f"{100 * result.values[head]:+.1f}" for result in results.values())] for head in heads]
    rows.append(["sum", *(f"{100 * result.total:+.1f}" for result in results.values())])
    return markdown_table(["head", *results], rows)


def overlap_markdown(rules: Mapping[str, RuleHeads]) -> str:
    """How far each two rules rest on the same heads."""
    rows = []
    for (rule, result), (other_rule, other) in combinations(rules.items(), 2):
        sets = ["no set" if each.smallest is None else head_set_name(each.smallest) for each in (result, other)]
        shared = set(result.smallest or ()) & set(other.smallest or ())
        rows.append(
            [
                f"{rule}, {other_rule}",
                f"{overlap(result.needs, other.needs):.2f}",
                f"{overlap(result.suffices, other.suffices):.2f}",
                *sets,
                head_set_name(shared),
            ]
        )
    header = ["rules", "overlap of needs", "of suffices", "smallest set of the first", "of the second", "in both"]
    return markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column left, the others right."""
    rule = [":---", *("---:" for _ in header[1:])]
    whole = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *whole))
