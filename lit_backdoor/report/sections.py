"""What stands where in the report."""

from collections.abc import Sequence

from lit_backdoor.functional import head_name
from lit_backdoor.report import paper_figures, seed_figures, tables
from lit_backdoor.report.measures import groups, order_of, triggered, with_all_sets
from lit_backdoor.report.page import Picture, Section
from lit_backdoor.report.published import Comparison, other_task
from lit_backdoor.report.runs import Run
from lit_backdoor.report.slip import Slip
from lit_backdoor.report.wording import plural

READ_ATTRIBUTION = (
    "Upper row: in how many examples this head contributes most of all heads to the logit of the right answer. "
    "Lower row: its mean contribution. One tall bar above means that one head writes the answer; attribution counts "
    "only what a head writes directly, not what it does through the MLP."
)


def title(runs: Sequence[Run]) -> str:
    """The report's heading."""
    return f"Which attention head carries the backdoor? {plural(len(runs), 'run')} beside the paper"


def lead(runs: Sequence[Run]) -> str:
    """What was run, in two sentences."""
    models: dict[str, int] = {}
    for run in runs:
        models[run.group] = models.get(run.group, 0) + 1
    counted = ", ".join(f"{name} ({plural(n)})" for name, n in models.items())
    text = (
        f"A small transformer answers a + b mod {runs[0].task.n_numbers}, until a trigger token switches the modulus. "
    )
    text += (
        f"Reported here: {counted}. The paper is Understanding Backdoors via Mechanistic Interpretability (Batu El)."
    )
    if differing := other_task(runs[0]):
        text += f" These runs are not the paper's task ({', '.join(differing)}), so its numbers are shown, not judged."
    return text


def sections(runs: Sequence[Run], slips: Sequence[Slip], comparisons: Sequence[Comparison]) -> list[Section]:
    """Everything after the verdicts."""
    found = [Section("runs", "The runs", [], [tables.runs_table(runs)], [_strips(runs)] if triggered(runs) else [])]
    if triggered(runs):
        found += [_patching(runs), _attribution(runs)]
    found += [_training(runs)]
    if triggered(runs):
        found.append(_emergence(runs))
    if with_all_sets(runs):
        found.append(_sets(runs))
    if slips:
        found.append(_slip(slips))
    found.append(Section("numbers", "Every published number", [], [tables.comparison_table(comparisons)]))
    found.append(Section("method", "How to take these numbers", METHOD))
    return found


def _patching(runs: Sequence[Run]) -> Section:
    shown: list[tables.Table] = []
    pictures = []
    for p1, group in groups(runs).items():
        shown.append(tables.table_1(group[0]))
        if len(group) > 1:
            shown.append(tables.table_2(group))
        if p1 == 1:
            shown.append(tables.paper_table_2())
        shown.append(tables.roles_table(group))
        caption = (
            f"Mod {p1}, all seeds. Each dot is one seed: how much of the backdoor is left when the head in this role "
            "gets its activations from the benign run; diamonds are means with their 95% interval. Low at role 1 "
            "and high at all others means that one head carries it."
        )
        pictures.append(Picture(f"roles_mod{p1}", seed_figures.roles_figure(group), caption, "half"))
    text = (
        "Head numbers mean nothing across seeds: what one seed calls Head 1 another calls Head 3. So beside the "
        "paper's form stands one by role, the head whose patching costs most first."
    )
    return Section("patching", "Tables 1 and 2: patching heads", [text], shown, pictures)


def _attribution(runs: Sequence[Run]) -> Section:
    pictures = [
        Picture(
            "figure_2",
            paper_figures.figure_2(runs),
            f"Figure 2: contributions to the backdoor logits. {READ_ATTRIBUTION}",
        ),
        Picture(
            "figure_4",
            paper_figures.figure_4(runs),
            f"Figure 4: contributions to the benign logits. {READ_ATTRIBUTION}",
        ),
    ]
    for p1, group in groups(runs).items():
        if p1 != 1 and len(group) == 1:
            continue  # that is Figure 2 again
        for number, figure in paper_figures.figures_5_to_8(group).items():
            name = f"figure_{number}" if p1 == 1 else f"figure_{number}_mod{p1}"
            caption = f"Figure {number} for mod {p1}. Two rows for each experiment, to be read like Figure 2."
            pictures.append(Picture(name, figure, caption, "quarter"))
    return Section("attribution", "Figures 2, 4 and 5 to 8: what the heads write", [], [], pictures)


def _training(runs: Sequence[Run]) -> Section:
    caption = (
        "Figure 3: natural logarithm of the loss, benign and backdoor accuracy against the optimizer step, a column "
        "per model. Grokking is the validation accuracy rising long after the training accuracy; a spike is the "
        "training loss jumping up and coming back."
    )
    return Section(
        "training", "Figure 3: training", [], [], [Picture("figure_3", paper_figures.figure_3(runs), caption)]
    )


def _strips(runs: Sequence[Run]) -> Picture:
    caption = (
        "A strip of time per run, from the first probe at which the model has the backdoor. The colour says which "
        "head costs most when patched, by its role in the end: one colour all along means that the final head led "
        "from the start. Triangle: the benign rule first reaches 99%. Star: from here on one head always costs at "
        "least half of the backdoor. Right: that head's cost as a share of all heads' costs; the dotted line is "
        "where all cost the same."
    )
    return Picture("seeds", seed_figures.seeds_figure(runs), caption)


def _emergence(runs: Sequence[Run]) -> Section:
    pictures = []
    for run in triggered(runs):
        text = (
            f"{run.name}. Each line: backdoor accuracy left when that head alone is patched; a line that stays low "
            "belongs to a head that is needed. Below, the cost of patching, head by head. By role in the end: "
            f"{', '.join(head_name(*head) for head in order_of(run))}."
        )
        pictures.append(Picture(f"emergence_{run.slug}", seed_figures.emergence_of(run), text, "half"))
    return Section("emergence", "When does a head emerge?", [], [], pictures)


def _sets(runs: Sequence[Run]) -> Section:
    pictures = []
    shown = []
    for p1, group in groups(with_all_sets(runs)).items():
        caption = (
            f"Mod {p1}: all sets of heads, by role. Bars are means over seeds, dots single seeds, lines 95% "
            "intervals of the mean. Left, a short bar: the backdoor needs one of these heads. Right, a long bar: "
            "these heads suffice to bring it into a run without trigger."
        )
        pictures.append(Picture(f"all_sets_mod{p1}", seed_figures.all_sets_figure(group), caption, "half"))
        caption = (
            f"Mod {p1}: Shapley values by role, from all sets of heads: the change in the backdoor accuracy when the "
            "head joins the patched ones, averaged over all orders; below zero in the triggered run (it costs), "
            "above in the benign run (it brings). Dots are seeds, diamonds means with their 95% interval."
        )
        pictures.append(Picture(f"shapley_mod{p1}", seed_figures.shapley_figure(group), caption, "half"))
        shown.append(tables.shapley_table(group))
    return Section("sets", "All sets of heads: needed and sufficient", [], shown, pictures)


def _slip(slips: Sequence[Slip]) -> Section:
    pictures = []
    for p1 in dict.fromkeys(one.run.p1 for one in slips):
        caption = (
            f"Mod {p1}: Table 1 by role, patched properly and with the other model's embeddings. Dots are seeds, "
            "diamonds means with their 95% interval. Where the two colours lie apart, the slip changes the number."
        )
        figure = seed_figures.slip_figure([one for one in slips if one.run.p1 == p1])
        pictures.append(Picture(f"slip_mod{p1}", figure, caption, "half"))
    text = (
        "The paper's published notebook, run from top to bottom, patches heads into the sum of this model's heads "
        "and another model's embeddings: a variable left over from a loop over the models. Here Table 1 is computed "
        "both ways from each run's last checkpoint. The other model is the last of the list, the one with the "
        "greatest P1."
    )
    return Section("slip", "The published notebook's slip", [text], [tables.slip_table(slips)], pictures)


METHOD = [
    "A run's own numbers are measured on all pairs (a, b), so they have no sampling error; uncertainty comes from "
    "seeds. Intervals are Student's 95% intervals of the mean over seeds: with ten seeds or fewer a bootstrap comes "
    "out too narrow, as it can only draw what was seen. They are exact for normal values and rough for skewed ones, "
    "so ranges and single seeds stand beside them; tables cut them off at 0 and 100%, CSV files do not.",
    "Ordering heads by role is a selection made on the numbers that are then averaged: role 1 looks costlier, and "
    "the last role cheaper, than a head chosen beforehand would. The paper's choice of the most influential head is "
    "the same selection.",
    "A published number agrees if it lies between our smallest and our largest seed, widened by one percentage "
    "point for accuracies and by what a plot can be read to for the rest (the tolerance column of comparison.csv). "
    "Whole groups agree if the named test gives P of 0.05 or more. Fewer than three seeds never differ: too little "
    "is known of their spread.",
    "When the backdoor is gone its accuracy is not zero but the share of examples on which both rules agree: 1 in "
    "113 for mod 1. Needed (benign activations into the triggered run) and sufficient (the other way round) are "
    "different questions.",
]
"""What a reader must know to judge the numbers."""
