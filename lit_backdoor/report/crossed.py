"""Seeds crossed with splits: which runs fitted, by which step, and whether that goes with the seed or the split."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from lit_backdoor.functional.seed_statistics import p_value_of_rows, sums_of_squares, wilson
from lit_backdoor.report.declared import declared
from lit_backdoor.show.wording import Statement, heading, percent, rate

END = "end"
FITTED = ("fitted", "generalised")
SOURCES = ("seed", "split", "both")


def crossed_groups(seeds: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The finished runs of each group whose seeds, two or more, share two or more splits; is each `is_fitted`?"""
    if seeds.empty:
        return
    finished = seeds[seeds["step"] >= seeds["steps_asked_for"].fillna(0)]
    finished = finished.assign(is_fitted=finished["state"].isin(FITTED))
    for name, rows in finished.groupby("group", sort=False):
        if min(_whole_grid(rows).shape, default=0) > 1:
            yield str(name), rows


def fitted_rows(seeds: pd.DataFrame) -> pd.DataFrame:
    """fitted.csv: of each crossed group, how many runs had fitted by the declared steps, and are fitted at the end.

    A step counts the runs that have done so many steps, whether they had fitted or not; one that none has done is left
    out.
    """
    rows: list[dict[str, Any]] = []
    for name, runs in crossed_groups(seeds):
        for step in (*declared().fitted_by, END):
            known = runs if step == END else runs[runs["step"] >= step]
            there = known["is_fitted"] if step == END else known["fitted_step"].le(step).fillna(False)
            if len(known):
                share = wilson(int(there.sum()), len(known))
                row = {"group": name, "by": step, "n_runs": len(known), "fitted": int(there.sum())}
                rows.append(row | {"rate": share.value, "wilson95_low": share.low, "wilson95_high": share.high})
    return pd.DataFrame(rows)


def variance_rows(seeds: pd.DataFrame) -> pd.DataFrame:
    """fitted_by_source.csv: how much of "fitted at the end or not" goes with the seed, the split, and only with both.

    Shares of the sum of squares of 0 and 1 about their mean, over the splits that all seeds have been trained on. Seed:
    that of the seeds' means; split: of the splits' means; both: the rest, which with one run for each pair is the two
    together and chance. `by_chance` is each one's share of the degrees of freedom, `p_value` how often so large a share
    comes if the runs of each split (for the seed) or of each seed (for the split) are shuffled.
    """
    rows: list[dict[str, Any]] = []
    for name, runs in crossed_groups(seeds):
        grid = _whole_grid(runs).to_numpy(dtype=float)
        n_seeds, n_splits = grid.shape
        free = np.array([n_seeds - 1, n_splits - 1, (n_seeds - 1) * (n_splits - 1)])
        shares = sums_of_squares(grid) / max(((grid - grid.mean()) ** 2).sum(), 1e-12)
        p_values = [p_value_of_rows(grid), p_value_of_rows(grid.T), np.nan]
        for values in zip(SOURCES, shares, free / free.sum(), p_values, strict=True):
            row = dict(zip(("source", "share", "by_chance", "p_value"), values, strict=True))
            rows.append({"group": name, "n_seeds": n_seeds, "n_splits": n_splits} | row)
    return pd.DataFrame(rows)


def crossed_statement(name: str, runs: pd.DataFrame) -> Statement:
    """How many fitted, and whether it is the seed or the split."""
    fitted, sources = fitted_rows(runs), variance_rows(runs).set_index("source")
    limit = declared().alpha / 2
    shown = [f"the {source} matters" for source, p in sources["p_value"].items() if p < limit]
    parts = [
        f"{'at the end' if row.by == END else f'by step {row.by:,}'}: {rate(row.fitted, row.n_runs)}"
        for row in fitted.itertuples()
    ]
    of_source = [
        f"{source} {percent(row['share'], 0)} (by chance {percent(row['by_chance'], 0)}"
        + (f", P = {row['p_value']:.3f})" if source != "both" else ")")
        for source, row in sources.iterrows()
    ]
    last, grid = fitted.iloc[-1], sources.iloc[0]
    headline = f"{last['fitted']} of {last['n_runs']} runs are fitted at the end; "
    headline += f"{' and '.join(shown)}." if shown else "whether seed or split matters is inconclusive."
    text = (
        f"Fitted, with Wilson's intervals: {'; '.join(parts)}. How much of fitted or not at the end goes with what "
        f"(shares of the sum of squares, {grid['n_seeds']} seeds on {grid['n_splits']} splits): "
        f"{', '.join(of_source)}. Both: what neither explains by itself, chance included. A seed or split matters if "
        f"shuffling the runs within each split or seed gives so large a share with P below {limit:g}, half of alpha "
        "for each of two tests; otherwise it is inconclusive."
    )
    return Statement(f"{heading(name)}: seeds crossed with splits", headline, text)


def _whole_grid(runs: pd.DataFrame) -> pd.DataFrame:
    """Whether each run is fitted at the end, seed by split; the splits that all seeds have been trained on."""
    return runs.pivot(index="seed", columns="split", values="is_fitted").dropna(axis="columns")
