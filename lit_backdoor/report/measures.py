"""What is measured of runs, as tidy data frames: one row for each thing, every number as it was recorded."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from lit_backdoor.functional import (
    Head,
    cost_above_floor,
    effective_heads,
    head_name,
    head_set_name,
    shares,
    shows_behaviour,
)
from lit_backdoor.functional.moments import came_before, recorded_moment
from lit_backdoor.functional.ranks import rank_key, ranks_of
from lit_backdoor.functional.seed_statistics import summarise
from lit_backdoor.report.declared import declared
from lit_backdoor.report.published import paper_steps
from lit_backdoor.runs.run import Run
from lit_backdoor.show.markdown import paper_name

ALL = "all"
STATES = ("generalised", "fitted", "not fitted", "")
RULES = ("benign_", "backdoor_")
WHOLE = ("steps_asked_for", "paper_steps", "n_costly_heads", "crossings", "leader_changes", "capture_lag")
METRICS = ("other_rate", "logit_diff", "log_prob", "kl", "n_examples")
CONTRIBUTIONS = ("mean_logit", "mean_logit_centered", "mean_logit_diff")
DIRECTIONS = {"needed": "backdoor_accuracy", "sufficient": "backdoor_accuracy_of_benign_run"}
HEAD_MOMENTS = ("first_cost", "first_exclusive", "stable_exclusive")


def triggered(runs: Sequence[Run]) -> list[Run]:
    """The runs with a trigger."""
    return [run for run in runs if run.p1 is not None]


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs with a trigger by group: `mod 1`, `mod 7`, ..."""
    by_name: dict[str, list[Run]] = {}
    for run in triggered(runs):
        by_name.setdefault(run.group, []).append(run)
    return by_name


def first_seeds(runs: Sequence[Run]) -> list[Run]:
    """The run with the lowest seed of each group, the clean one first."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.group, run)
    return list(first.values())


def of_group(name: str, frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows of one group, in every frame that has groups."""
    return {table: frame[frame["group"] == name] for table, frame in frames.items() if "group" in frame}


def with_progress(runs: Sequence[Run], what: str) -> Iterable[Run]:
    """The runs with a trigger, with a bar on a terminal, since something is computed from the weights of each."""
    return tqdm(triggered(runs), what, leave=False, disable=None)


def by_state(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All rows, then those of each state that occurs, none dropped; of one state alone, that state."""
    states = [state for state in STATES if (frame["state"] == state).any()]
    if len(states) != 1:
        yield ALL, frame
    for state in states:
        yield state or "unknown", frame[frame["state"] == state]


def over_runs(frame: pd.DataFrame, *names: str) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The rows that agree in the columns `names`, by state, with what they agree in."""
    for values, alike in frame.groupby(list(names), sort=False):
        for state, some in by_state(alike):
            yield dict(zip(names, values, strict=True)) | {"state": state}, some


def has_backdoor(run: Run) -> bool:
    """Whether the model gives backdoor answers, as declared, and that because of the trigger."""
    (scores,) = (each for each in run.history["backdoor"] if each.step == run.patching_step)
    return shows_behaviour(scores, run.floor, declared().threshold, declared().min_accuracy)


def with_backdoor(runs: Sequence[Run]) -> list[Run]:
    """The runs whose model has the backdoor."""
    return [run for run in triggered(runs) if has_backdoor(run)]


def costs(run: Run) -> dict[Head, float]:
    """What patching each head alone costs of the backdoor, above the floor; 0 while the model does not have it."""
    singles = {heads[0]: value for heads, value in run.left.items() if len(heads) == 1}
    if not has_backdoor(run):
        return dict.fromkeys(singles, 0.0)
    return {head: cost_above_floor(run.left[()], value, run.floor) for head, value in singles.items()}


def final_log_loss(run: Run) -> float:
    """Natural logarithm of the training loss, the median over the last tenth: a spike does not move it."""
    losses = sorted(run.metrics.loc[run.metrics["step"] >= 0.9 * run.step, "train/loss"].dropna())
    middle = losses[len(losses) // 2] if losses else math.nan
    return math.log(middle) if middle > 0 else math.nan


def label(run: Run) -> dict[str, Any]:
    """The first columns of every table."""
    p1 = "clean" if run.p1 is None else run.p1
    names = {"run": run.name, "group": run.group, "p1": p1}
    return names | {"seed": run.seed or 0, "split": run.split, "state": run.state}


def head_sets(runs: Sequence[Run]) -> pd.DataFrame:
    """table1.csv and table2.csv: one row per set of heads, both directions side by side."""
    rows = []
    for run in triggered(runs):
        present = has_backdoor(run)
        for result in run.patching["backdoor"]:
            row = label(run) | {"heads": head_set_name(result.heads), "ranks": ranks_of(result.heads, run.order)}
            row |= {"backdoor_accuracy": result.recipient_accuracy, "benign_accuracy": result.donor_accuracy}
            row |= {name: getattr(result, name) for name in METRICS}
            row |= {DIRECTIONS["sufficient"]: run.brought.get(result.heads, math.nan), "floor": result.floor}
            row |= {"paper_name": paper_name(result.heads, run.order), "step": run.patching_step}
            rows.append(row | {"has_backdoor": present})
    return pd.DataFrame(rows)


def counted(sets: pd.DataFrame) -> pd.DataFrame:
    """The rows of `head_sets` whose run has the backdoor: where there is none, patching can't leave anything of it."""
    return sets[sets["has_backdoor"]]


def over_seeds(sets: pd.DataFrame) -> pd.DataFrame:
    """ranks.csv: each set of ranks over the runs of one group and state that have the backdoor, both directions."""
    rows = []
    for labels, some in over_runs(counted(sets), "group"):
        for direction, column in DIRECTIONS.items():
            for ranks in sorted(some["ranks"].unique(), key=rank_key):
                values = some.loc[some["ranks"] == ranks, column].tolist()
                rows.append(labels | {"direction": direction, "ranks": ranks} | vars(summarise(values)))
    return pd.DataFrame(rows).rename(columns={"low": "bca95_low", "high": "bca95_high", "n": "n_runs"})


def seeds(runs: Sequence[Run]) -> pd.DataFrame:
    """seeds.csv: one row per run, the clean ones included."""
    rows = []
    for run in runs:
        moments = [f"{rule}{moment}_step" for rule in ("", *RULES) for moment in ("fitted", "generalised")]
        row = label(run) | {
            "step": run.step,
            "steps_asked_for": run.max_steps,
            "paper_steps": paper_steps(run.p1),
            "measured_at_step": run.patching_step,
            "final_log_loss": final_log_loss(run),
            "validation_loss_of": run.emergence["validation_loss_of"],
            **{f"{rule}accuracy_all_pairs": run.unpatched.get(rule.strip("_")) for rule in RULES},
            **{name: run.emergence.get(name) for name in moments},
        }
        rows.append(row | (_heads_in_short(run) if run.p1 is not None else {}))
    frame = pd.DataFrame(rows)
    whole = [name for name in frame if name.endswith("_step") or name in WHOLE]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def _heads_in_short(run: Run) -> dict[str, Any]:
    """The columns of seeds.csv that only runs with a trigger have."""
    verdict, result = run.emergence, run.shapley()
    return {
        "heads_by_rank": "+".join(head_name(*head) for head in run.order),
        "costliest_left": min(value for heads, value in run.left.items() if len(heads) == 1),
        "n_costly_heads": sum(cost >= declared().threshold for cost in costs(run).values()),
        **{name: verdict[name] if has_backdoor(run) else None for name in ("word", "head")},
        **{name: verdict[name] for name in ("occupancy", "crossings")},
        "largest_shapley_share": max(shares(result).values()) if result else None,
        "effective_heads": effective_heads(result) if result else None,
        **{f"{name}_step": verdict[f"{name}_step"] for name in HEAD_MOMENTS},
        "leader_changes": max(len(verdict["leader_changes"]) - 1, 0),
        "attention_measured": "attention" in run.tables,
        **{name: verdict.get(name) for name in ("capture_step", "capture_lag")},
        "captured_before_cost": came_before(*(recorded_moment(verdict, name) for name in ("capture", "first_cost"))),
    }


def head_claims(runs: Sequence[Run]) -> pd.DataFrame:
    """heads.csv: what of necessary, sufficient and specific holds for each head, by the declared thresholds.

    They are blank where the model lacks the backdoor; `specific` also where it lacks the benign rule, as nothing was
    measured then.
    """
    limits, rows = declared(), []
    for run in with_progress(runs, "heads"):
        present, cost_of = has_backdoor(run), costs(run)
        for rank, head in enumerate(run.order, start=1):
            both, cost = run.specificity.get(head), cost_of[head]
            benign_cost = both.donor_cost if both else math.nan
            brings = 1 - cost_above_floor(run.left[()], run.brought.get((head,), math.nan), run.floor)
            holds = {"necessary": cost >= limits.necessary, "sufficient": brings >= limits.sufficient}
            specific = bool(benign_cost <= limits.specific) if not math.isnan(benign_cost) else None
            said = claim(**holds, specific=specific) if present else "no backdoor"
            row = label(run) | {"head": head_name(*head), "rank": rank}
            row |= {"backdoor_cost": cost, "backdoor_sufficiency": brings}
            row |= {"benign_cost": benign_cost, "selectivity": both.selectivity if both else math.nan}
            row |= holds | {"specific": specific} if present else dict.fromkeys((*holds, "specific"))
            rows.append(row | {"claim": said})
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


def shapley_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """shapley.csv: Shapley values and pair interactions of the backdoor accuracy, from all sets of heads.

    Of the runs that have the backdoor.
    """
    rows = []
    for run in with_backdoor(runs):
        for direction in DIRECTIONS:
            if (result := run.shapley(direction)) is None:
                continue
            parts = {(head,): value for head, value in result.values.items()} | dict(result.interactions)
            for heads, value in parts.items():
                row = label(run) | {"direction": direction, "kind": "value" if len(heads) == 1 else "interaction"}
                names = {"heads": head_set_name(heads), "ranks": ranks_of(heads, run.order)}
                rows.append(row | names | {"value": value})
    return pd.DataFrame(rows)


def attribution_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """attribution.csv: one row per run, probe and head, at the last probe; without any, no rows."""
    rows = []
    for run in runs:
        for probe, results in run.attribution.items():
            largest_first = sorted(results, key=lambda result: -result.mean_logit)
            for result in results:
                rank = run.order.index(result.head) + 1 if run.p1 is not None else pd.NA
                row = label(run) | {"probe": probe, "head": head_name(*result.head), "rank": rank}
                row |= {"rank_by_mean_logit": largest_first.index(result) + 1}
                row |= {name: getattr(result, name) for name in CONTRIBUTIONS}
                rows.append(row | {"top_share": result.top_count / result.n_examples})
    return pd.DataFrame(rows)
