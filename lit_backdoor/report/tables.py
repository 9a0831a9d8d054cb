"""The report's tables, in the paper's form and by role; a cell may be highlighted."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_backdoor.functional import Head, HeadSet, shapley_values
from lit_backdoor.report.measures import accuracies, carriers, large_spikes, largest_share, leaders, order_of, spread
from lit_backdoor.report.published import Comparison, paper_by_role, paper_steps, published_order, published_table
from lit_backdoor.report.roles import by_role, head_order, role_set_name, shown_sets
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_statistics import permutation_test
from lit_backdoor.report.slip import Slip
from lit_backdoor.report.wording import NOTHING, Highlighted, mean_percent, number, percent, plural, whole_percent
from lit_backdoor.show.markdown import markdown_table, paper_name


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Attributes:
        caption: what it shows, and how to read it.
        header: names of the columns.
        rows: the cells; a ``Highlighted`` one stands out.
        folded: whether a page shows it only on request.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    def markdown(self) -> str:
        """The table in Markdown, highlighted cells in bold."""
        rows = [[f"**{cell}**" if isinstance(cell, Highlighted) else cell for cell in row] for row in self.rows]
        return markdown_table(self.header, rows)


def table_1(run: Run) -> Table:
    """The paper's Table 1, with the run's own head numbers; for mod 1 the paper's row beside it."""
    order = order_of(run)
    ours = {one.heads: one.recipient_accuracy for one in run.patching["backdoor"]}
    caption = f"Table 1 for {run.name}, step {run.patching_step:,}: backdoor accuracy after patching heads of the "
    caption += "triggered run with their benign activations. Highlighted: the most influential head."
    if run.p1 != 1 or len(order) != 4:
        return _own_numbers(caption, [(f"ours, seed {run.seed}", ours, order)], [_complement(order)])
    (theirs,) = published_table("Table 1").values()
    pairs = [("the paper", theirs, published_order(theirs)), (f"ours, seed {run.seed}", ours, order)]
    complements = list(dict.fromkeys(_complement(one) for _, _, one in pairs))
    return _own_numbers(f"{caption} Head numbers are each model's own.", pairs, complements)


def table_2(group: Sequence[Run]) -> Table:
    """The paper's Table 2: one row per seed, with each run's own head numbers."""
    pairs = [
        (f"seed {run.seed}", {one.heads: one.recipient_accuracy for one in run.patching["backdoor"]}, order_of(run))
        for run in group
    ]
    caption = f"Table 2 for {group[0].group}: backdoor accuracy after patching, one row per seed."
    return _own_numbers(caption, pairs, [])


def paper_table_2() -> Table:
    """The paper's own Table 2."""
    pairs = [(f"Experiment {key}", one, published_order(one)) for key, one in published_table("Table 2").items()]
    return _own_numbers("The paper's Table 2, as printed: mod 1.", pairs, [])


def _complement(order: Sequence[Head]) -> HeadSet:
    return tuple(sorted(order[1:]))


def _own_numbers(
    caption: str,
    pairs: Sequence[tuple[str, dict[HeadSet, float], tuple[Head, ...]]],
    complements: Sequence[HeadSet],
) -> Table:
    """Rows of (name, accuracy by heads, heads by role), in columns of single heads, some complements, and all."""
    heads = tuple(sorted(pairs[0][2]))
    sets: list[HeadSet] = [(), *((head,) for head in heads), *complements, heads]
    rows = []
    for name, values, order in pairs:
        cells = [percent(values[one]) if one in values else "" for one in sets]
        chosen = sets.index((order[0],))
        cells[chosen] = Highlighted(cells[chosen])
        rows.append([name, *cells])
    return Table(caption, ["patched heads", *(paper_name(one, len(heads)) for one in sets)], rows)


def roles_table(group: Sequence[Run]) -> Table:
    """Mean and 95% interval over the seeds, by role; for mod 1 the paper's ten experiments beside."""
    n_heads = len(order_of(group[0]))
    sets = shown_sets(n_heads)
    found = {probe: [by_role(run.patching[probe], order_of(run)) for run in group] for probe in ("backdoor", "benign")}
    needed = {roles: [one[roles].recipient_accuracy for one in found["backdoor"] if roles in one] for roles in sets}
    brought = {roles: [one[roles].donor_accuracy for one in found["benign"] if roles in one] for roles in sets}
    header = ["patched heads", "left (needed)", "brought (sufficient)"]
    rows = [[role_set_name(one, n_heads), mean_percent(needed[one]), mean_percent(brought[one])] for one in sets]
    caption = (
        f"{group[0].group.capitalize()} over {plural(len(group))}, heads by role (role 1 is the one whose patching "
        "costs most): mean [95% interval]. Needed: what is left of the backdoor after benign heads were patched "
        "into the triggered run. Sufficient: how much of it triggered heads bring into the benign run."
    )
    if group[0].p1 == 1 and n_heads == 4:
        theirs = paper_by_role()
        header += ["the paper (needed)", "P value"]
        for row, roles in zip(rows, sets, strict=True):
            values = theirs.get(roles, [])
            p_value = number(permutation_test(needed[roles], values), 3)
            row += [mean_percent(values), p_value]
        caption += " P value: permutation test for a difference between our mean and the paper's, uncorrected."
    return Table(caption, header, rows)


def runs_table(runs: Sequence[Run]) -> Table:
    """Where every run stands, and what was told about it."""
    header = ["run", "steps", "asked for", "the paper's", "state", "fitted", "generalised", "word", "head"]
    header += ["alone from", "largest share", "effective heads", "heads that cost half", "leader changes", "spikes"]
    rows = []
    for run in runs:
        verdict = run.emergence
        row = [run.name, number(run.step, 0), number(run.max_steps, 0), number(paper_steps(run.p1), 0)]
        row += [verdict["state"] or NOTHING, *(number(verdict[f"{s}_step"], 0) for s in ("fitted", "generalised"))]
        if run.p1 is None:
            row += [NOTHING] * 7
        else:
            results = run.patching["backdoor"]
            row += [
                verdict["word"] or NOTHING,
                verdict["head"] or NOTHING,
                number(verdict["stable_exclusive_step"], 0),
                whole_percent(largest_share(results)),
                number(spread(results), 1),
                str(len(carriers(results))),
                str(max(len(leaders(run)) - 1, 0)),
            ]
        rows.append([*row, str(large_spikes(run))])
    caption = (
        "Every run: optimizer steps done, asked for and in the paper; its state, and when every rule was first fitted "
        "and had first generalised; where the backdoor sits; the head that costs most of those that cost half of it; "
        "from which probe on that head and no other does, at 95% of all later probes; the largest Shapley share, and "
        "exp(entropy) of the shares; how many heads cost half, each alone, at the last probe; how often another head "
        "came to cost most; loss spikes of a decade or more."
    )
    return Table(caption, header, rows)


def shapley_table(runs: Sequence[Run]) -> Table:
    """Shapley values by role of runs with one P1 and all sets of heads: one row per seed, and their mean."""
    n_heads = len(order_of(runs[0]))
    values = [shapley_values(accuracies(run)["needed"]).values for run in runs]
    by_seed = [[one[head] for head in order_of(run)] for run, one in zip(runs, values, strict=True)]
    rows = [
        [f"seed {run.seed}", *(f"{100 * value:+.1f}" for value in one)] for run, one in zip(runs, by_seed, strict=True)
    ]
    rows.append(["mean", *(f"{100 * sum(column) / len(column):+.1f}" for column in zip(*by_seed, strict=True))])
    caption = f"Shapley values for {runs[0].group}: what patching a head changes in the backdoor accuracy, in "
    caption += (
        "percentage points, averaged over all orders of patching; from all sets of heads. They sum to the change "
    )
    caption += "that patching all heads makes."
    return Table(caption, ["", *(f"Role {role}" for role in range(1, n_heads + 1))], rows)


def slip_table(found: Sequence[Slip]) -> Table:
    """Table 1 by role for every run, patched properly and the notebook's way."""
    n_heads = len(head_order(found[0].proper))
    sets = shown_sets(n_heads)
    rows = []
    for slip in found:
        order = head_order(slip.proper)
        for way, results in (("properly", slip.proper), ("the notebook's way", slip.slipped)):
            values = by_role(results, order)
            name = slip.run.name if way == "properly" else f"… with the embeddings of {slip.other.name}"
            rows.append([name, *(percent(values[roles].recipient_accuracy) for roles in sets)])
    caption = (
        "Backdoor accuracy after patching, by role (of proper patching): first properly, then the notebook's way, "
    )
    caption += "with the other model's embeddings at the last position."
    return Table(caption, ["run", *(role_set_name(roles, n_heads) for roles in sets)], rows)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Every published number beside ours."""
    rows = []
    for one in comparisons:
        share = one.published.quantity in ("backdoor_accuracy", "largest_top_share")
        digits = 2 if one.published.quantity in ("mean_logit", "final_log_loss") else 0

        def shown(value: float, share: bool = share, digits: int = digits) -> str:
            return percent(value) if share else number(value, digits)

        ends = dict.fromkeys((shown(one.published.low), shown(one.published.high)))
        ours = dict.fromkeys((shown(one.ours.smallest), shown(one.ours.largest)))
        verdict = Highlighted(one.verdict) if one.verdict == "differs" else one.verdict
        source = f"{one.published.source}, {one.published.experiment}"
        rows.append([source, one.model, one.what, " to ".join(ends), " to ".join(ours), str(one.ours.n), verdict])
    header = ["where", "model", "quantity", "the paper", "ours, smallest to largest", "seeds", "verdict"]
    caption = (
        "Every number of the paper beside the range of our seeds. Heads are compared by role, contributions by rank."
    )
    return Table(caption, header, rows, folded=True)
