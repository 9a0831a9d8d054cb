"""The report's CSV files: tidy, one row per thing, every number in them as it was measured."""

from collections.abc import Sequence

from lit_backdoor.functional import head_name, head_set_name, shapley_values
from lit_backdoor.report.measures import (
    accuracies,
    carriers,
    emergence_lag,
    groups,
    large_spikes,
    largest_share,
    leaders,
    order_of,
    spread,
    with_all_sets,
)
from lit_backdoor.report.published import Comparison, final_log_loss, paper_steps
from lit_backdoor.report.roles import by_role, head_order, roles_of
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_statistics import summarise
from lit_backdoor.report.slip import Slip
from lit_backdoor.runs.schema import Value
from lit_backdoor.show.markdown import paper_name

Rows = list[dict[str, Value]]


def label(run: Run) -> dict[str, Value]:
    """The first columns of every table."""
    return {"p1": "clean" if run.p1 is None else run.p1, "seed": run.seed}


def table_rows(runs: Sequence[Run]) -> Rows:
    """table1.csv and table2.csv: one row per set of heads, both directions side by side."""
    rows: Rows = []
    for run in runs:
        order, sufficient = order_of(run), {one.heads: one for one in run.patching["benign"]}
        for one in run.patching["backdoor"]:
            brought = sufficient[one.heads]
            row: dict[str, Value] = {
                **label(run),
                "heads": head_set_name(one.heads),
                "backdoor_accuracy": one.recipient_accuracy,
                "benign_accuracy": one.donor_accuracy,
                "other_rate": one.other_rate,
                "logit_diff": one.logit_diff,
                "log_prob": one.log_prob,
                "kl": one.kl,
                "backdoor_accuracy_of_benign_run": brought.donor_accuracy,
                "roles": _join(roles_of(one.heads, order)),
                "paper_name": paper_name(one.heads, len(order)),
                "n_examples": one.n_examples,
                "step": run.patching_step,
            }
            rows.append(row)
    return rows


def role_rows(runs: Sequence[Run]) -> Rows:
    """roles.csv: each set of roles over the seeds of one P1, both directions."""
    rows: Rows = []
    for p1, group in groups(runs).items():
        for direction, probe in (("needed", "backdoor"), ("sufficient", "benign")):
            tables = [by_role(run.patching[probe], order_of(run)) for run in group]
            for roles in dict.fromkeys(roles for table in tables for roles in table):
                found = [table[roles] for table in tables if roles in table]
                values = [one.recipient_accuracy if probe == "backdoor" else one.donor_accuracy for one in found]
                ours = summarise(values)
                row: dict[str, Value] = {
                    "p1": p1,
                    "direction": direction,
                    "roles": _join(roles),
                    "n_seeds": ours.n,
                    "mean_backdoor_accuracy": ours.mean,
                    "ci95_low": ours.low,
                    "ci95_high": ours.high,
                    "smallest": ours.smallest,
                    "largest": ours.largest,
                }
                rows.append(row)
    return rows


def seed_rows(runs: Sequence[Run]) -> Rows:
    """seeds.csv: one row per run, the clean ones included."""
    rows: Rows = []
    for run in runs:
        verdict = run.emergence
        row: dict[str, Value] = {
            **label(run),
            "step": run.step,
            "steps_asked_for": _blank(run.max_steps),
            "paper_steps": _blank(paper_steps(run.p1)),
            "measured_at_step": run.patching_step,
            "final_log_loss": final_log_loss(run),
            "loss_spikes": large_spikes(run),
            "state": _blank(verdict["state"]),
            "validation_loss_of": verdict["validation_loss_of"],
            **{
                f"{rule}{what}_step": _blank(verdict.get(f"{rule}{what}_step"))
                for rule in ("", "benign_", "backdoor_")
                for what in ("fitted", "generalised")
            },
        }
        if run.p1 is not None:
            results = run.patching["backdoor"]
            row |= {
                "heads_by_role": "+".join(head_name(*head) for head in order_of(run)),
                "largest_shapley_share": largest_share(results),
                "effective_heads": spread(results),
                "n_heads_that_cost_half": len(carriers(results)),
                "head": _blank(verdict["head"]),
                "word": _blank(verdict["word"]),
                **{
                    f"{moment}_step": _blank(verdict[f"{moment}_step"])
                    for moment in ("first_cost", "first_exclusive", "stable_exclusive")
                },
                "stable_exclusive_after_benign_generalised": _blank(emergence_lag(run)),
                "occupancy": _blank(verdict["occupancy"]),
                "crossings": verdict["crossings"],
                "leader_changes": max(len(leaders(run)) - 1, 0),
            }
        rows.append(row)
    return rows


def spike_rows(runs: Sequence[Run]) -> Rows:
    """spikes.csv: one row per loss spike."""
    rows: Rows = []
    for run in runs:
        for spike in run.spikes:
            rows.append({**label(run), "start_step": spike["step"], **{k: v for k, v in spike.items() if k != "step"}})
    return rows


def attribution_rows(runs: Sequence[Run]) -> Rows:
    """attribution.csv: one row per run, probe and head, at the last probe."""
    rows: Rows = []
    for run in runs:
        for probe, heads in run.attribution.items():
            rank = {one.head: i + 1 for i, one in enumerate(sorted(heads, key=lambda one: -one.mean_logit))}
            for one in heads:
                role: Value = "" if run.p1 is None else order_of(run).index(one.head) + 1
                row: dict[str, Value] = {
                    **label(run),
                    "probe": probe,
                    "head": head_name(*one.head),
                    "role": role,
                    "rank_by_mean_logit": rank[one.head],
                    "mean_logit": one.mean_logit,
                    "mean_logit_centered": one.mean_logit_centered,
                    "mean_logit_diff": one.mean_logit_diff,
                    "top_share": one.top_count / one.n_examples,
                }
                rows.append(row)
    return rows


def shapley_rows(runs: Sequence[Run]) -> Rows:
    """shapley.csv: Shapley values and pair interactions of the backdoor accuracy, from all sets of heads."""
    rows: Rows = []
    for run in with_all_sets(runs):
        order = order_of(run)
        for direction, values in accuracies(run).items():
            result = shapley_values(values)
            parts = {(head,): value for head, value in result.values.items()} | dict(result.interactions)
            for heads, value in parts.items():
                row: dict[str, Value] = {
                    **label(run),
                    "direction": direction,
                    "kind": "value" if len(heads) == 1 else "interaction",
                    "heads": head_set_name(heads),
                    "roles": _join(roles_of(heads, order)),
                    "value": value,
                }
                rows.append(row)
    return rows


def slip_rows(found: Sequence[Slip]) -> Rows:
    """slip.csv: every set of heads, patched properly and the notebook's way."""
    rows: Rows = []
    for slip in found:
        order = head_order(slip.proper)
        for proper, slipped in zip(slip.proper, slip.slipped, strict=True):
            row: dict[str, Value] = {
                **label(slip.run),
                "heads": head_set_name(proper.heads),
                "backdoor_accuracy": proper.recipient_accuracy,
                "slip_backdoor_accuracy": slipped.recipient_accuracy,
                "benign_accuracy": proper.donor_accuracy,
                "slip_benign_accuracy": slipped.donor_accuracy,
                "roles": _join(roles_of(proper.heads, order)),
                "other_p1": label(slip.other)["p1"],
                "other_seed": slip.other.seed,
                "step": _blank(slip.run.checkpoint_step),
            }
            rows.append(row)
    return rows


def comparison_rows(comparisons: Sequence[Comparison]) -> Rows:
    """comparison.csv: every published number beside ours."""
    return [
        {
            "source": one.published.source,
            "experiment": one.published.experiment,
            "p1": one.model.removeprefix("mod "),
            "quantity": one.what,
            "paper_heads": head_set_name(one.published.heads),
            "published_low": one.published.low,
            "published_high": one.published.high,
            "how": one.published.how,
            "n_seeds": one.ours.n,
            "ours_mean": one.ours.mean,
            "ours_smallest": one.ours.smallest,
            "ours_largest": one.ours.largest,
            "tolerance": one.published.tolerance,
            "verdict": one.verdict,
        }
        for one in comparisons
    ]


def _join(roles: Sequence[int]) -> str:
    return "+".join(map(str, roles)) or "none"


def _blank(value: Value | None) -> Value:
    return "" if value is None else value
