"""When things came in the runs of a group, and how often their losses had spikes."""

from collections.abc import Sequence

import pandas as pd

from lit_backdoor.functional.moments import LATE
from lit_backdoor.functional.seed_statistics import kaplan_meier_median, summarise
from lit_backdoor.report.declared import declared
from lit_backdoor.report.measures import HEAD_MOMENTS, label, over_runs
from lit_backdoor.runs.run import Run

MOMENTS = {"fitted": 1.0, "generalised": 1.0} | dict.fromkeys(HEAD_MOMENTS, 1 - LATE)
"""What is dated, and up to which share of a run's steps."""


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
    """Loss spikes by group, state and prominence: median and range of the runs' rates."""
    return pd.DataFrame(
        labels | {"without_end": some["without_end"].sum()} | vars(summarise(some["per_10000_steps"].tolist()))
        for labels, some in over_runs(spikes, "group", "prominence")
    )


def time_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """times.csv: when things came, by group and state: in how many runs, Kaplan and Meier's median, the range.

    Args:
        frame: of `seeds`.
    """
    rows = []
    for labels, some in over_runs(frame, "group"):
        for moment, share in MOMENTS.items():
            if share < 1 and (some["p1"] == "clean").all():
                continue
            times = [None if pd.isna(time) else int(time) for time in some[f"{moment}_step"]]
            came = [time for time in times if time is not None]
            middle = kaplan_meier_median(times, [share * step for step in some["step"]])
            ends = {"first": min(came, default=None), "last": max(came, default=None)}
            row = labels | {"moment": moment, "n_runs": len(times), "came": len(came)}
            rows.append(row | {"kaplan_meier_median": middle} | ends)
    return pd.DataFrame(rows)
