"""What is measured of runs, as tidy data frames: one row for each thing, every number as it was recorded."""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pandas as pd

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import (
    Head,
    HeadSet,
    HeadSpecificity,
    ShapleyResult,
    cost_above_floor,
    effective_heads,
    head_name,
    head_set_name,
    head_specificity,
    shapley_values,
    shares,
)
from lit_backdoor.functional.moments import LATE
from lit_backdoor.report.declared import declared
from lit_backdoor.report.published import paper_steps
from lit_backdoor.report.ranks import head_order, rank_key, ranks_of
from lit_backdoor.report.runs import Run
from lit_backdoor.report.seed_statistics import kaplan_meier_median, summarise
from lit_backdoor.runs.schema import read_results
from lit_backdoor.show.markdown import paper_name

ALL = "all"
STATES = ("generalised", "fitted", "not fitted", "")
RULES = ("benign_", "backdoor_")
WHOLE = ("steps_asked_for", "paper_steps", "n_costly_heads", "crossings", "leader_changes")
METRICS = ("other_rate", "logit_diff", "log_prob", "kl", "n_examples")
CONTRIBUTIONS = ("mean_logit", "mean_logit_centered", "mean_logit_diff")
SPECIFICITY = {"benign_cost": "donor_cost", "selectivity": "selectivity"}
HEAD_MOMENTS = ("first_cost", "first_exclusive", "stable_exclusive")
MOMENTS = {"fitted": 1.0, "generalised": 1.0} | dict.fromkeys(HEAD_MOMENTS, 1 - LATE)
"""What is dated, and up to which share of a run's steps."""


def triggered(runs: Sequence[Run]) -> list[Run]:
    """The runs with a trigger."""
    return [run for run in runs if run.p1 is not None]


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs with a trigger by model: `mod 1`, `mod 7`, ..."""
    by_name: dict[str, list[Run]] = {}
    for run in triggered(runs):
        by_name.setdefault(run.group, []).append(run)
    return by_name


def by_state(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All rows, then those of each state that occurs, none dropped; of one state alone, that state."""
    states = [state for state in STATES if (frame["state"] == state).any()]
    if len(states) != 1:
        yield ALL, frame
    for state in states:
        yield state or "unknown", frame[frame["state"] == state]


def left(run: Run) -> dict[HeadSet, float]:
    """The backdoor accuracy with benign activations in each set of heads: what the backdoor needs."""
    return {result.heads: result.recipient_accuracy for result in run.patching["backdoor"]}


def sufficient_accuracies(run: Run) -> dict[HeadSet, float]:
    """The backdoor accuracy of the benign run with triggered activations in each set of heads: what suffices."""
    return {result.heads: result.donor_accuracy for result in run.patching["benign"]}


def order_of(run: Run) -> tuple[Head, ...]:
    """The heads of a run with a trigger by rank; of equal accuracies, the lower logit difference is first."""
    return head_order(left(run), {result.heads: result.logit_diff for result in run.patching["backdoor"]})


def costs(run: Run) -> dict[Head, float]:
    """What patching each head alone costs of the backdoor, above the floor; 0 while the model does not have it."""
    accuracies, floor = left(run), run.patching["backdoor"][0].floor
    there = accuracies[()] >= declared().min_accuracy
    return {
        heads[0]: cost_above_floor(accuracies[()], value, floor) if there else 0.0
        for heads, value in accuracies.items()
        if len(heads) == 1
    }


@cache
def specificity(run: Run) -> dict[Head, HeadSpecificity]:
    """What each head costs either rule at the last step, by the run's table or else its weights; empty without both."""
    if "head_specificity" in run.tables:
        table = run.tables["head_specificity"]
        table = table[table["probe"] == "backdoor"]
        results = read_results(HeadSpecificity, table[table["step"] == table["step"].max()].to_dict("records"))
        return {result.head: result for result in results}
    if run.model is None or run.task is None:
        return {}
    return {result.head: result for result in head_specificity(run.model, task_probes(run.task)["backdoor"])}


def label(run: Run) -> dict[str, Any]:
    """The first columns of every table."""
    p1 = "clean" if run.p1 is None else run.p1
    return {"run": run.name, "p1": p1, "seed": run.seed or 0, "split": run.split, "state": run.state}


def head_sets(runs: Sequence[Run]) -> pd.DataFrame:
    """table1.csv and table2.csv: one row per set of heads, both directions side by side."""
    rows = []
    for run in triggered(runs):
        order, sufficient = order_of(run), sufficient_accuracies(run)
        for result in run.patching["backdoor"]:
            row = label(run) | {"heads": head_set_name(result.heads), "ranks": ranks_of(result.heads, order)}
            row |= {"backdoor_accuracy": result.recipient_accuracy, "benign_accuracy": result.donor_accuracy}
            row |= {name: getattr(result, name) for name in METRICS}
            row |= {"backdoor_accuracy_of_benign_run": sufficient.get(result.heads, math.nan), "floor": result.floor}
            rows.append(row | {"paper_name": paper_name(result.heads, len(order)), "step": run.patching_step})
    return pd.DataFrame(rows)


def over_seeds(sets: pd.DataFrame) -> pd.DataFrame:
    """ranks.csv: each set of ranks over the runs of one P1 and state, both directions."""
    rows = []
    directions = {"needed": "backdoor_accuracy", "sufficient": "backdoor_accuracy_of_benign_run"}
    for p1, model in sets.groupby("p1", sort=False):
        for state, some in by_state(model):
            for direction, column in directions.items():
                for ranks in sorted(some["ranks"].unique(), key=rank_key):
                    values = some.loc[some["ranks"] == ranks, column]
                    rows.append({"p1": p1, "state": state, "direction": direction, "ranks": ranks}
                                | vars(summarise(values.tolist())))  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.rename(columns={"low": "bca95_low", "high": "bca95_high", "n": "n_runs"})


def seeds(runs: Sequence[Run]) -> pd.DataFrame:
    """seeds.csv: one row per run, the clean ones included."""
    rows = []
    for run in runs:
        verdict = run.emergence
        moments = [f"{rule}{moment}_step" for rule in ("", *RULES) for moment in ("fitted", "generalised")]
        row = label(run) | {
            "step": run.step,
            "steps_asked_for": run.max_steps,
            "paper_steps": paper_steps(run.p1),
            "measured_at_step": run.patching_step,
            "final_log_loss": final_log_loss(run),
            "validation_loss_of": verdict["validation_loss_of"],
            **{f"{rule}accuracy_all_pairs": unpatched(run).get(rule.strip("_")) for rule in RULES},
            **{name: verdict.get(name) for name in moments},
        }
        if run.p1 is not None:
            row |= _heads_in_short(run)
        rows.append(row)
    frame = pd.DataFrame(rows)
    whole = [name for name in frame if name.endswith("_step") or name in WHOLE]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def unpatched(run: Run) -> dict[str, float]:
    """The accuracy of each rule on all pairs, nothing patched."""
    return {
        probe: next(result.recipient_accuracy for result in results if not result.heads)
        for probe, results in run.patching.items()
    }


def _heads_in_short(run: Run) -> dict[str, Any]:
    """The columns of seeds.csv that only runs with a trigger have."""
    verdict, result, cost = run.emergence, shapley(run), costs(run).values()
    return {
        "heads_by_rank": "+".join(head_name(*head) for head in order_of(run)),
        "costliest_left": min(value for heads, value in left(run).items() if len(heads) == 1),
        "n_costly_heads": sum(value >= declared().threshold for value in cost),
        **{name: verdict[name] for name in ("word", "head", "occupancy", "crossings")},
        "largest_shapley_share": max(shares(result).values()) if result else None,
        "effective_heads": effective_heads(result) if result else None,
        **{f"{name}_step": verdict[f"{name}_step"] for name in HEAD_MOMENTS},
        "leader_changes": max(len(verdict["leader_changes"]) - 1, 0),
    }


def head_claims(runs: Sequence[Run]) -> pd.DataFrame:
    """heads.csv: what of necessary, sufficient and specific holds for each head, by the declared thresholds."""
    limits, rows = declared(), []
    for run in triggered(runs):
        cost, single, specific = costs(run), sufficient_accuracies(run), specificity(run)
        floor, whole = run.patching["backdoor"][0].floor, left(run)[()]
        for rank, head in enumerate(order_of(run), start=1):
            both = specific.get(head)
            sufficiency = 1 - cost_above_floor(whole, single.get((head,), math.nan), floor)
            holds = (
                cost[head] >= limits.necessary,
                sufficiency >= limits.sufficient,
                bool(both.donor_cost <= limits.specific) if both else None,
            )
            row = label(run) | {"head": head_name(*head), "rank": rank}
            row |= {"backdoor_cost": cost[head], "backdoor_sufficiency": sufficiency}
            row |= {name: getattr(both, field, math.nan) for name, field in SPECIFICITY.items()}
            row |= dict(zip(("necessary", "sufficient", "specific"), holds, strict=True))
            rows.append(row | {"claim": claim(*holds)})
    return pd.DataFrame(rows)


def claim(necessary: bool, sufficient: bool, specific: bool | None) -> str:
    """What may be said of a head. It carries the backdoor only if it is all three.

    >>> claim(True, True, True), claim(True, False, None)
    ('carries the backdoor', 'necessary, not sufficient, specific not measured')
    """
    if necessary and sufficient and specific:
        return "carries the backdoor"
    parts = {"necessary": necessary, "sufficient": sufficient, "specific": specific}
    words = {True: "{}", False: "not {}", None: "{} not measured"}
    return ", ".join(words[holds].format(name) for name, holds in parts.items())


def shapley(run: Run, direction: str = "needed") -> ShapleyResult | None:
    """Shapley values of the backdoor accuracy; None unless all sets of heads were patched."""
    values = left(run) if direction == "needed" else sufficient_accuracies(run)
    return shapley_values(values) if len(values) == 2 ** len(order_of(run)) else None


def shapley_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """shapley.csv: Shapley values and pair interactions of the backdoor accuracy, from all sets of heads."""
    rows = []
    for run in triggered(runs):
        for direction in ("needed", "sufficient"):
            if (result := shapley(run, direction)) is None:
                continue
            parts = {(head,): value for head, value in result.values.items()} | dict(result.interactions)
            for heads, value in parts.items():
                kind = "value" if len(heads) == 1 else "interaction"
                names = {"heads": head_set_name(heads), "ranks": ranks_of(heads, order_of(run))}
                rows.append(label(run) | {"direction": direction, "kind": kind, **names, "value": value})
    return pd.DataFrame(rows)


def attribution_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """attribution.csv: one row per run, probe and head, at the last probe."""
    rows = []
    for run in runs:
        for probe, results in run.attribution.items():
            largest_first = sorted(results, key=lambda result: -result.mean_logit)
            for result in results:
                rank = order_of(run).index(result.head) + 1 if run.p1 is not None else None
                row = label(run) | {"probe": probe, "head": head_name(*result.head), "rank": rank}
                row |= {"rank_by_mean_logit": largest_first.index(result) + 1}
                row |= {name: getattr(result, name) for name in CONTRIBUTIONS}
                rows.append(row | {"top_share": result.top_count / result.n_examples})
    return pd.DataFrame(rows).astype({"rank": "Int64"})


def spike_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """spikes.csv: loss spikes of each run, by prominence; `without_end`: not over when the run ended (censored)."""
    rows = []
    for run in runs:
        for prominence in declared().prominences:
            spikes = run.spikes[run.spikes["prominence"] >= prominence] if len(run.spikes) else run.spikes
            row = label(run) | {"prominence": prominence, "spikes": len(spikes)}
            row |= {"per_10000_steps": 1e4 * len(spikes) / max(run.step, 1)}
            rows.append(row | {"without_end": int(spikes["end_step"].isna().sum()) if len(spikes) else 0})
    return pd.DataFrame(rows)


def spikes_over_seeds(spikes: pd.DataFrame) -> pd.DataFrame:
    """Loss spikes by P1, state and prominence: median and range of the runs' rates."""
    rows = []
    for (p1, prominence), model in spikes.groupby(["p1", "prominence"], sort=False):
        for state, some in by_state(model):
            unended = int(some["without_end"].sum())
            row = {"p1": p1, "prominence": prominence, "state": state, "without_end": unended}
            rows.append(row | vars(summarise(some["per_10000_steps"].tolist())))
    return pd.DataFrame(rows)


def time_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """times.csv: when things came, by P1 and state: in how many runs, Kaplan and Meier's median, the range.

    Args:
        frame: of `seeds`.
    """
    rows = []
    for p1, model in frame.groupby("p1", sort=False):
        for state, some in by_state(model):
            for moment, share in MOMENTS.items():
                if (column := f"{moment}_step") not in some or (p1 == "clean" and share < 1):
                    continue
                times = [None if pd.isna(time) else int(time) for time in some[column]]
                came = [time for time in times if time is not None]
                middle = kaplan_meier_median(times, [share * step for step in some["step"]])
                rows.append(
                    {"p1": p1, "state": state, "moment": moment, "n_runs": len(times), "came": len(came),
                     "kaplan_meier_median": middle, "first": min(came, default=None), "last": max(came, default=None)}
                )  # fmt: skip
    return pd.DataFrame(rows)


def final_log_loss(run: Run) -> float:
    """Natural logarithm of the training loss, the median over the last tenth of the run: a spike does not move it."""
    late = run.metrics[run.metrics["step"] >= 0.9 * run.step]
    losses = sorted(late["train/loss"].dropna())
    middle = losses[len(losses) // 2] if losses else math.nan
    return math.log(middle) if middle > 0 else math.nan
