"""How an answer comes about, as Markdown tables: paths, attention, specificity, neurons, waves."""

from collections.abc import Mapping, Sequence
from math import isnan

from lit_backdoor.functional import (
    HeadProgress,
    HeadSpecificity,
    NeuronCounts,
    PathPatchingResult,
    PositionAttention,
    RemovalResult,
    edge_set_name,
    head_name,
)
from lit_backdoor.functional.retraining import staying_away_tells, weak_removals
from lit_backdoor.show.markdown import markdown_table, scores_markdown


def paths_markdown(results: Sequence[PathPatchingResult]) -> str:
    """Every set of edges; a group by its name."""
    names = [f"{result.group} of all heads" if result.group else edge_set_name(result.edges) for result in results]
    return scores_markdown("edges", dict(zip(names, results, strict=True)))


def attention_markdown(results: Sequence[PositionAttention]) -> str:
    """A row for each head: attention to each position and its shift, then what the weights alone say."""
    by_head: dict[str, list[PositionAttention]] = {}
    for result in results:
        by_head.setdefault(head_name(*result.head), []).append(result)
    positions = [result.position for result in next(iter(by_head.values()))]
    header = ["head", *(f"to {position}" for position in positions), *(f"shift {position}" for position in positions)]
    header += ["output change", "score gap", "by query", "by key", "by both", "OV write"]
    rows = []
    for name, places in by_head.items():
        result = places[0]
        weights = (result.score_gap, result.query_gap_shift, result.key_gap_shift, result.gap_shift, result.write)
        rows.append(
            [
                name,
                *(f"{place.attention:.2f} ± {place.attention_std:.2f}" for place in places),
                *(f"{place.shift:+.2f} ± {place.shift_std:.2f}" for place in places),
                f"{result.output_change:.2f}",
                *(_number(value, ".2f") for value in weights),
            ]
        )
    return markdown_table(header, rows)


def removal_markdown(results: Sequence[RemovalResult]) -> str:
    """A row for each removal."""
    rows = []
    for result in results:
        back = f"not in {result.return_limit}" if result.return_steps is None else str(result.return_steps)
        lost = f"{100 * result.benign_lost:.2f}"
        rows.append([result.method, result.target, f"{result.backdoor_left:.2%}", lost, back])
    return markdown_table(["method", "target", "backdoor left", "benign points lost", "steps until back"], rows)


def weak_in_words(results: Sequence[RemovalResult]) -> str:
    """How many weak removals came back, and what that says of those that did not."""
    back, weak = weak_removals(results)
    said = f"of the removals that leave half or more, {back} of {weak} came back"
    return said if staying_away_tells(results) else f"{said}: staying away tells nothing"


def specificity_markdown(results: Sequence[HeadSpecificity]) -> str:
    """A row for each head."""
    rows = []
    for result in results:
        costs = (_number(cost, ".1%") for cost in (result.cost, result.donor_cost))
        rows.append([head_name(*result.head), *costs, _number(result.selectivity, ".2f")])
    return markdown_table(["head", "cost to the rule", "cost to the donor's rule", "selectivity"], rows)


def neurons_markdown(counts: Mapping[str, NeuronCounts]) -> str:
    """A row for each probe."""
    rows = [
        [
            probe,
            str(result.n_neurons),
            *("none" if number is None else str(number) for number in (result.needed, result.sufficient)),
            _number(result.overlap, ".0%"),
            _number(result.overlap_by_chance, ".0%"),
        ]
        for probe, result in counts.items()
    ]
    return markdown_table(["probe", "neurons", "halve it", "suffice for half", "overlap", "by chance"], rows)


def progress_markdown(progress: Mapping[str, Sequence[HeadProgress]]) -> str:
    """A row for each rule, then one for each rule and head."""
    rows = []
    for rule, results in progress.items():
        result = results[0]
        losses = (result.loss, result.restricted_loss, result.train_loss, result.excluded_loss)
        shares = (_number(result.explained, ".1%"), _number(result.constant, ".1%"))
        key = ", ".join(map(str, result.key)) or "none"
        rows.append([rule, str(result.modulus), key, *shares, *(_number(loss, ".2e") for loss in losses)])
    header = ["rule", "modulus", "key frequencies", "explained", "constant"]
    waves = markdown_table([*header, "loss", "restricted", "training loss", "excluded"], rows)
    rows = [
        [
            f"{rule}, {head_name(*result.head)}",
            f"{result.qk_norm:.2f}",
            f"{result.ov_norm:.2f}",
            f"{result.gradient_norm:.2e}",
            _number(result.gradient_share, ".1%"),
            _number(result.cosine, "+.2f"),
        ]
        for rule, results in progress.items()
        for result in results
    ]
    header = ["rule, head", "QK norm", "OV norm", "gradient", "its share", "cosine with the first rule"]
    return f"{waves}\n\n{markdown_table(header, rows)}"


def _number(value: float, form: str) -> str:
    return "n/a" if isnan(value) else format(value, form)
