"""Seeds crossed with splits: which runs fitted, by which step, and whether that goes with the seed or the split."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lit_backdoor.report.declared import declared
from lit_backdoor.report.seed_statistics import ROUNDS, wilson
from lit_backdoor.report.wording import Statement, heading, percent, plural, rate
from lit_backdoor.show.style import new_figure

END = "end"
FITTED = ("fitted", "generalised")
SOURCES = ("seed", "split", "both")


def crossed_groups(seeds: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The finished runs of each group in seeds.csv whose seeds, two or more, share two or more splits."""
    if seeds.empty:
        return
    finished = seeds[seeds["step"] >= seeds["steps_asked_for"].fillna(0)]
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
            there = known["state"].isin(FITTED) if step == END else known["fitted_step"].le(step).fillna(False)
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
        p_values = [_p_value(grid), _p_value(grid.T), np.nan]
        for values in zip(SOURCES, shares, free / free.sum(), p_values, strict=True):
            row = dict(zip(("source", "share", "by_chance", "p_value"), values, strict=True))
            rows.append({"group": name, "n_seeds": n_seeds, "n_splits": n_splits} | row)
    return pd.DataFrame(rows)


def sums_of_squares(grid: np.ndarray) -> np.ndarray:
    """Of a table [seed, split]: those of rows' means, columns' means and the rest, which add up to the total."""
    mean = grid.mean()
    rows = grid.shape[1] * ((grid.mean(axis=1) - mean) ** 2).sum()
    columns = grid.shape[0] * ((grid.mean(axis=0) - mean) ** 2).sum()
    return np.array([rows, columns, ((grid - mean) ** 2).sum() - rows - columns])


def fitted_figure(name: str, runs: pd.DataFrame) -> Figure:
    """Seeds crossed with splits: the step by which each run fitted; a cross if it is not fitted at the end."""
    seeds, splits = sorted(runs["seed"].unique()), sorted(runs["split"].unique())
    figure = new_figure(1.9 + 0.62 * len(seeds), 1.5 + 0.5 * len(splits))
    axis = figure.subplots()
    steps = runs.pivot(index="split", columns="seed", values="fitted_step").reindex(index=splits, columns=seeds)
    first, last = runs["fitted_step"].agg(["min", "max"]).fillna(0)
    mesh = axis.pcolormesh(steps.astype("float64"), cmap="viridis_r", vmin=first, vmax=last)
    mesh.set(edgecolor="white", linewidth=2)
    axis.set_facecolor("0.88")
    for run in runs.itertuples():
        x, y = seeds.index(run.seed) + 0.5, splits.index(run.split) + 0.5
        colour = "white" if pd.notna(run.fitted_step) and run.fitted_step > (first + last) / 2 else "black"
        if run.state not in FITTED:
            axis.plot(x, y, "x", color=colour, markersize=11, markeredgewidth=2)
        else:
            axis.text(x, y, f"{run.fitted_step:,}", ha="center", va="center", fontsize=8, color=colour)
    axis.set(xticks=np.arange(len(seeds)) + 0.5, xticklabels=seeds, xlabel="seed")
    axis.set(yticks=np.arange(len(splits)) + 0.5, yticklabels=splits, ylabel="split")
    axis.invert_yaxis()
    axis.set_title(f"{name}, {plural(len(runs))}", fontsize=11)
    figure.colorbar(mesh, ax=axis, label="fitted by step")
    return figure


def crossed_statement(name: str, runs: pd.DataFrame) -> Statement:
    """How many fitted, and whether it is the seed or the split."""
    fitted, sources = fitted_rows(runs), variance_rows(runs).set_index("source")
    limit = declared().alpha / 2
    shown = [f"the {source} matters" for source, p in sources["p_value"].items() if p < limit]
    parts = [
        f"by step {row.by:,}: {rate(row.fitted, row.n_runs)}" if row.by != END else
        f"at the end: {rate(row.fitted, row.n_runs)}"
        for row in fitted.itertuples()
    ]  # fmt: skip
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
    fitted = runs.assign(fitted=runs["state"].isin(FITTED))
    return fitted.pivot(index="seed", columns="split", values="fitted").dropna(axis="columns")


def _p_value(grid: np.ndarray) -> float:
    """How often the means of the rows are spread so far if each column is shuffled by itself."""
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.broadcast_to(grid, (ROUNDS, *grid.shape)), axis=1)
    spread = shuffled.mean(axis=2).var(axis=1)
    return float((1 + (spread >= grid.mean(axis=1).var() - 1e-12).sum()) / (1 + ROUNDS))
