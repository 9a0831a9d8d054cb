"""How an answer comes about, as Markdown tables: paths, attention, specificity, neurons, waves."""

from collections.abc import Mapping, Sequence
from math import isnan

from lit_backdoor.functional import (
    HeadProgress,
    HeadSpecificity,
    NeuronCounts,
    PathPatchingResult,
    PositionAttention,
    edge_set_name,
    head_name,
)
from lit_backdoor.show.markdown import markdown_table


def paths_markdown(results: Sequence[PathPatchingResult]) -> str:
    """Every set of edges; a group by its name."""
    first = results[0]
    header = ["edges", f"{first.recipient} acc.", f"{first.donor} acc.", "other", "logit diff.", "log prob.", "KL"]
    rows = [
        [
            f"{one.group} of all heads" if one.group else edge_set_name(one.edges),
            f"{one.recipient_accuracy:.2%}",
            f"{one.donor_accuracy:.2%}",
            f"{one.other_rate:.2%}",
            f"{one.logit_diff:.2f}",
            f"{one.log_prob:.3f}",
            f"{one.kl:.3f}",
        ]
        for one in results
    ]
    return markdown_table(header, rows)


def attention_markdown(results: Sequence[PositionAttention]) -> str:
    """A row for each head: attention to each position and its shift, then what the weights alone say."""
    by_head: dict[str, list[PositionAttention]] = {}
    for one in results:
        by_head.setdefault(head_name(*one.head), []).append(one)
    positions = [one.position for one in next(iter(by_head.values()))]
    header = ["head", *(f"to {position}" for position in positions), *(f"shift {position}" for position in positions)]
    header += ["output change", "score gap", "by query", "by key", "by both", "OV write"]
    rows = []
    for name, places in by_head.items():
        one = places[0]
        weights = (one.score_gap, one.query_gap_shift, one.key_gap_shift, one.gap_shift, one.write)
        rows.append(
            [
                name,
                *(f"{place.attention:.2f} ± {place.attention_std:.2f}" for place in places),
                *(f"{place.shift:+.2f} ± {place.shift_std:.2f}" for place in places),
                f"{one.output_change:.2f}",
                *(_number(value, ".2f") for value in weights),
            ]
        )
    return markdown_table(header, rows)


def specificity_markdown(results: Sequence[HeadSpecificity]) -> str:
    """A row for each head."""
    rows = []
    for one in results:
        costs = (_number(cost, ".1%") for cost in (one.cost, one.donor_cost))
        rows.append([head_name(*one.head), *costs, _number(one.selectivity, ".2f")])
    return markdown_table(["head", "cost to the rule", "cost to the donor's rule", "selectivity"], rows)


def neurons_markdown(counts: Mapping[str, NeuronCounts]) -> str:
    """A row for each probe."""
    rows = [
        [
            probe,
            str(one.n_neurons),
            *("none" if number is None else str(number) for number in (one.needed, one.sufficient)),
            _number(one.overlap, ".0%"),
            _number(one.overlap_by_chance, ".0%"),
        ]
        for probe, one in counts.items()
    ]
    return markdown_table(["probe", "neurons", "halve it", "suffice for half", "overlap", "by chance"], rows)


def progress_markdown(progress: Mapping[str, Sequence[HeadProgress]]) -> str:
    """A row for each rule, then one for each rule and head."""
    rows = []
    for rule, results in progress.items():
        one = results[0]
        losses = (one.loss, one.restricted_loss, one.train_loss, one.excluded_loss)
        shares = (_number(one.explained, ".1%"), _number(one.constant, ".1%"))
        key = ", ".join(map(str, one.key)) or "none"
        rows.append([rule, str(one.modulus), key, *shares, *(_number(loss, ".2e") for loss in losses)])
    header = ["rule", "modulus", "key frequencies", "explained", "constant"]
    waves = markdown_table([*header, "loss", "restricted", "training loss", "excluded"], rows)
    rows = [
        [
            f"{rule}, {head_name(*one.head)}",
            f"{one.qk_norm:.2f}",
            f"{one.ov_norm:.2f}",
            f"{one.gradient_norm:.2e}",
            _number(one.gradient_share, ".1%"),
            _number(one.cosine, "+.2f"),
        ]
        for rule, results in progress.items()
        for one in results
    ]
    header = ["rule, head", "QK norm", "OV norm", "gradient", "its share", "cosine with the first rule"]
    return f"{waves}\n\n{markdown_table(header, rows)}"


def _number(value: float, form: str) -> str:
    return "n/a" if isnan(value) else format(value, form)
