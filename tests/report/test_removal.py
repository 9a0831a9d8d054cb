"""Removed backdoors in the report: what `analyze --removal` wrote is read, drawn, and laid beside patching."""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lit_backdoor.cli.main import main
from lit_backdoor.functional import Head, PatchingResult, RemovalResult
from lit_backdoor.pretrained import open_shipped
from lit_backdoor.report.removal import localisation_rows, removal_figures
from lit_backdoor.runs.checkpoints import StoredModel
from lit_backdoor.runs.reading import read_runs
from lit_backdoor.runs.removed import RemovedModel, read_removed
from lit_backdoor.runs.weights import describe_stored, write_weights
from lit_backdoor.show.markdown_mechanism import weak_in_words
from lit_backdoor.show.removal import removal_figure
from tests.helpers import ROOT
from tests.helpers.known_head import TASK, hand_built
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli, read_rows

REMOVALS = "mean:L0H0,mean:L0H1,mean:L0H2,mean:L0H3,donor:L0H2,reset:trigger"


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model whose head 2 alone carries the backdoor, taken apart."""
    folder = tmp_path_factory.mktemp("removal")
    stored = StoredModel(hand_built().float(), TASK, 7, 5, {"train_fraction": 0.6, "split": "pairs", "seed": 3})
    weights = folder / "known" / "model.safetensors"
    weights.parent.mkdir()
    write_weights(weights, dict(stored.model.named_parameters()), describe_stored(stored))
    args = ("--pretrained", weights.parent, "--removal", REMOVALS, "--output_dir", folder / "taken_apart")
    assert main(["analyze", *map(str, args)]) == 0
    return folder / "taken_apart"


def test_the_report_of_a_removal(cli: Cli, analysis: Path) -> None:
    shutil.copytree(analysis, "models/apart")
    assert cli("report", "models", "--output_dir", "out") == 0
    (row,) = read_rows(Path("out/localisation.csv"))
    assert (row["model"], row["backdoor"], row["n_heads"]) == ("models/apart", "backdoor", "4")
    assert (row["costliest"], row["best"], row["rank_correlation"]) == ("L0H2", "L0H2", "1.0")
    by_target = {(each["method"], each["target"]): each for each in read_rows(analysis / "removal.csv")}
    assert row["best_left"] == by_target["mean", "L0H2"]["backdoor_left"]
    assert row["best_benign_lost"] == by_target["mean", "L0H2"]["benign_lost"]
    text = Path("out/report.md").read_text()
    assert text.startswith("# Backdoors removed: 1 model") and "(figures/removal_models_apart.svg)" in text
    assert "| models/apart | backdoor | 4 | L0H2 | 0.0% |" in text and "1.00 |" in text
    assert not Path("out/seeds.csv").exists()


def test_an_analysis_in_the_folder_of_a_run_is_that_runs(analysis: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(ROOT / "results" / "runs" / "mod1_one_split" / "seed_0", tmp_path / "seed_0"))
    shutil.copytree(analysis, run / "apart")
    shutil.copytree(analysis, tmp_path / "beside")
    shutil.copytree(analysis, tmp_path / "without_removal", ignore=shutil.ignore_patterns("removal.*"))  # no run either
    runs = read_runs([tmp_path], open_shipped)
    assert [each.name for each in runs] == ["mod 1, seed 0"]
    models = read_removed([tmp_path, run], runs)
    assert {model.name for model in models} == {"mod 1, seed 0: apart", f"{tmp_path.name}/beside"}
    assert set(removal_figures(models)) == {"removal_mod1_seed0_apart", f"removal_{tmp_path.name}_beside"}


def test_analyses_of_one_name_are_told_apart_by_their_places(analysis: Path, tmp_path: Path) -> None:
    """Of a run and its branch, which have the same P1 and seed; and of two models in folders called alike."""
    run = ROOT / "results" / "runs" / "mod1_one_split" / "seed_0"
    for name in ("version_0", "version_0_branch_b2"):
        shutil.copytree(analysis, shutil.copytree(run, tmp_path / "logs" / name) / "apart")
    runs = read_runs([tmp_path], open_shipped)
    assert [each.name for each in runs] == ["mod 1, seed 0"] * 2
    models = read_removed([tmp_path], runs)
    assert [model.name for model in models] == ["version_0/apart", "version_0_branch_b2/apart"]
    for place in ("one", "other"):
        shutil.copytree(analysis, tmp_path / place / "mod1" / "apart")
    assert [model.name for model in read_removed([tmp_path / "one", tmp_path / "other"], [])] == [
        "one/mod1/apart", "other/mod1/apart",
    ]  # fmt: skip


def model_of(patched: Sequence[float], removed: Sequence[float]) -> RemovedModel:
    """What patching and removing each head leaves; nothing patched, and all heads, at the ends."""
    heads = [Head(0, head) for head in range(len(patched))]
    sets = {(): 1.0} | {(head,): left for head, left in zip(heads, patched, strict=True)} | {tuple(heads): 0.0}
    patching = [
        PatchingResult(
            recipient="backdoor", donor="benign", ablation="resample", heads=some, n_examples=100,
            recipient_accuracy=left, donor_accuracy=0.0, other_rate=0.0, logit_diff=0.0, log_prob=0.0, kl=0.0,
            n_differing=90,
        )
        for some, left in sets.items()
    ]  # fmt: skip
    removals = [
        RemovalResult(
            method="mean", target=f"L0H{head}", backdoor_left=left, benign_lost=head / 10, return_steps=None,
            return_limit=300, n_poisoned=1,
        )
        for head, left in enumerate(removed)
    ]  # fmt: skip
    return RemovedModel(Path("x"), "x", {"backdoor": removals}, {"backdoor": patching})


def test_how_well_patching_foretells_removal() -> None:
    ((same,), (reversed_,), (alike,)) = (
        localisation_rows([model_of([0.3, 0.1, 0.9], removed)]).to_dict("records")
        for removed in ([0.5, 0.2, 1.0], [0.5, 0.9, 0.1], [0.4, 0.4, 0.4])
    )
    assert (same["costliest"], same["best"], same["rank_correlation"]) == ("L0H1", "L0H1", 1)
    assert (same["costliest_left"], same["costliest_benign_lost"]) == (0.2, 0.1)
    assert (reversed_["costliest"], reversed_["best"], reversed_["rank_correlation"]) == ("L0H1", "L0H2", -1)
    assert reversed_["best_left"] == 0.1 and reversed_["costliest_left"] == 0.9
    assert alike["rank_correlation"] != alike["rank_correlation"]  # NaN: nothing to order
    (axis,) = removal_figures([model_of([0.3, 0.1, 0.9], [0.5, 0.2, 1.0])])["removal_x"].axes
    floor, first = (line.get_ydata()[0] for line in axis.lines[:2])
    assert (floor, first) == (pytest.approx(10), 50)  # of 100 examples 90 have two answers


def test_staying_away_is_shown_only_where_weak_removals_come_back() -> None:
    """Where training does not restore even a backdoor of which most is left, it can't tell which one is gone."""
    model = model_of([0.9, 0.9], [0.9, 0.1])
    weak, strong = (replace(each, return_steps=None) for each in model.removals["backdoor"])
    untouched = replace(weak, backdoor_left=1.0, return_steps=0)  # it never left
    for results, words, filled in (
        ([replace(weak, return_steps=5), strong, untouched], "1 of 1 came back", True),
        ([weak, replace(weak, return_steps=5), strong], "1 of 2 came back", True),
        ([weak, strong, untouched], "0 of 1 came back: staying away tells nothing", False),
        ([strong, untouched], "0 of 0 came back: staying away tells nothing", False),
    ):
        said = f"of the removals that leave half or more, {words}"
        (axis,) = removal_figure({"backdoor": results}, {"backdoor": 0.1}).axes
        assert weak_in_words(results) == said and axis.get_title().split() == ["backdoor", *said.split()]
        dots = [line for line in axis.lines if list(line.get_ydata()) == [10.0]]
        assert [line.get_markerfacecolor() != "none" for line in dots] == [filled]


@pytest.mark.parametrize("removed", [[0.5], [0.5, 0.2]])
def test_where_some_head_was_not_removed_nothing_is_foretold(removed: Sequence[float]) -> None:
    """Else the costliest of those that were would pass for the costliest of all; here that is L0H1, then L0H2."""
    assert localisation_rows([model_of([0.3, 0.2, 0.1][: 1 + len(removed)], removed)]).empty


def test_a_removal_that_raises_the_benign_accuracy_is_in_the_figure() -> None:
    model = model_of([0.3, 0.1], [0.5, 0.2])
    first, *others = model.removals["backdoor"]
    drawn = {
        lost: removal_figure({"backdoor": [replace(first, benign_lost=lost), *others]}, {"backdoor": 0.1})
        for lost in (-0.3, 0.0)
    }
    assert {lost: figure.axes[0].get_xlim()[0] for lost, figure in drawn.items()} == {-0.3: -34, 0.0: -4}


def edit(file: str, pattern: str, by: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(re.sub(pattern, by, (folder / file).read_text()))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "head_patching.csv").unlink(), "head_patching.csv has no rows"),
        (edit("removal.csv", r"\n(.|\n)*", "\n"), "removal.csv has no rows; analyze --removal has not come so far"),
        (edit("removal.csv", "reset,trigger", "magic,trigger"), "'magic:trigger' is no removal"),
        (edit("removal.csv", "mean,L0H0", "mean,<b>"), "'mean:<b>' is no removal"),
        (edit("removal.csv", "backdoor,mean", "rule9,mean"), "head_patching.csv has no probe rule9"),
        (edit("removal.csv", "benign_lost", "lost"), "there is no column benign_lost"),
        (edit("removal.csv", r"reset,trigger,[\d.]+", "reset,trigger,7"), "'7' is not a share"),
    ],
)
def test_spoilt_analyses(
    cli: Cli, analysis: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], words: str
) -> None:
    spoil(Path(shutil.copytree(analysis, "apart")))
    assert_refused(cli, capsys, ("report", "apart", "--output_dir", "out"), "error: run_dirs: ", words)


def test_the_report_is_not_written_into_an_analysis(
    cli: Cli, analysis: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(analysis, "one/mod1/apart")
    assert_refused(cli, capsys, ("report", "one", "--output_dir", "one/mod1/apart"), "output_dir")
