"""Branches beside their controls, against the runs' own files."""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from lit_backdoor.functional.verdict import verdict_record
from lit_backdoor.pretrained import open_shipped
from lit_backdoor.report.branches import ComparedBranch, branch_rows, clamp_of, clamped_accuracy, weight_distances
from lit_backdoor.report.study import Study, arrange
from lit_backdoor.runs.reading import read_runs
from lit_backdoor.runs.tables import CsvTable, history
from lit_backdoor.runs.verdict import read_verdict
from lit_backdoor.runs.weights import kept_weights, read_tensors
from lit_backdoor.show.wording import NOTHING
from tests.helpers import QUIET, ROOT
from tests.helpers.configs import save_config
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli, read_rows, train_run
from tests.report.conftest import small_config

STEP, END = 60, 90
CLAMP = ("--clamp.heads=L0H1+L0H2+L0H3", "--clamp.mode=zero", "--clamp.until_step=80")
CLAMPED = ("--clamp.validation=true", "--monitors.patching.clamped=true")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 90 steps and three branches from step 60: another pass, a clamp, and a clamp that is not measured."""
    from lit_backdoor.cli.main import main

    folder = tmp_path_factory.mktemp("parent")
    config = small_config([11, 5])
    config["trainer"] |= {"max_steps": END, "val_check_interval": 2}
    config["checkpoint"] = {"every_n_steps": 30, "keep_every_n_steps": 30}
    config["weights"] = {"every_n_steps": 10, "dense_until": 0}
    config["monitors"]["patching"] |= {"every_n_steps": 10, "full_every_n_steps": 30}
    run = train_run(folder / "runs" / "seed_0", config=save_config(config, folder / "small.yaml"))
    start = ("fit", "--ckpt_path", str(run / "checkpoints" / f"step_{STEP:06d}.ckpt"), *QUIET, "--branch")
    assert main([*start, "clamped", *CLAMP, *CLAMPED]) == 0
    assert main([*start, "unseen", *CLAMP]) == 0
    return run


def distance(run: Path, other: Path) -> float:
    """From the last checkpoints, without the package's readers."""
    ours, theirs = (
        {name: value for name, value in torch.load(path / "checkpoints" / "last.ckpt")["state_dict"].items()
         if name.rsplit(".", 1)[-1][:2] in ("W_", "b_")}
        for path in (run, other)
    )  # fmt: skip
    squares = sum(float((ours[name] - theirs[name]).double().pow(2).sum()) for name in theirs)
    return sqrt(squares / sum(float(value.double().pow(2).sum()) for value in theirs.values()))


def by_name(study: Study) -> pd.DataFrame:
    return branch_rows(study.branches).set_index("branch")


def test_a_branch_beside_the_run_that_it_left(parent: Path) -> None:
    branch = parent.with_name("seed_0_branch_clamped")
    row = by_name(arrange(read_runs([parent.parent], open_shipped))).loc[branch.name]
    assert (row["control"], row["from_step"], row["to_step"]) == ("seed_0", STEP, END)
    assert (row["clamped_heads"], row["mode"]) == ("L0H1+L0H2+L0H3", "zero")
    assert row["weight_distance"] == pytest.approx(distance(branch, parent), rel=1e-6) and row["weight_distance"] > 0
    assert row["weight_distance_step"] == END
    rows = [row for row in read_rows(branch / "metrics.csv") if row["val/loss"] and STEP <= int(row["step"]) < 80]
    curve = {int(row["step"]): float(row["val/backdoor_accuracy"]) for row in rows}
    assert max(curve.values()) < 0.99 and pd.isna(row["return_steps"])
    assert row["held_steps"] == 78 - STEP
    last = [
        row for row in read_rows(branch / "head_patching.csv") if row["step"] == "70" and row["probe"] == "backdoor"
    ]
    left = {row["heads"]: float(row["backdoor_accuracy"]) for row in last}
    assert row["costliest_head"] == "L0H0" and row["costs"].startswith("L0H0=")  # the only one that is not clamped
    pairs = [(a, b) for a in range(11) for b in range(11)]
    floor = sum((a + b) % 11 == (a + b) % 5 for a, b in pairs) / len(pairs)
    assert row["costliest_cost"] == pytest.approx((left["none"] - left["L0H0"]) / (left["none"] - floor))
    benign = [
        {row["step"]: float(row["val/benign_accuracy"]) for row in read_rows(run / "metrics.csv") if row["val/loss"]}
        for run in (parent, branch)
    ]
    assert row["benign_lost"] == pytest.approx(benign[0]["90"] - benign[1]["90"])


def test_the_verdict_of_a_clamped_branch_is_about_its_own_probes(cli: Cli, parent: Path) -> None:
    branch = parent.with_name("seed_0_branch_clamped")
    rows = read_rows(branch / "head_patching.csv")
    assert {int(row["step"]): row["clamped"] for row in rows} == {
        60: "L0H1+L0H2+L0H3", 70: "L0H1+L0H2+L0H3", 80: "none", 90: "none"
    }  # fmt: skip
    own, verdict = history(rows, "backdoor"), read_verdict(branch)
    expected = verdict_record("backdoor", own, None, {}, verdict["floor"])
    for name in ("word", "head", "occupancy", "crossings", "leader_changes", "first_cost_step"):
        assert verdict[name] == expected[name], name
    unclamped = read_rows(branch.with_name("seed_0_branch_unseen") / "head_patching.csv")
    assert "clamped" not in unclamped[0] and {"0", "50", "90"} <= {row["step"] for row in unclamped}
    # its first step is probed, whether it is due or not
    start = ("fit", "--ckpt_path", parent / "checkpoints" / f"step_{STEP:06d}.ckpt", *CLAMP, *CLAMPED, *QUIET)
    rarely = ("--monitors.patching.every_n_steps", 50, "--trainer.max_steps", 70)
    assert cli(*start, "--branch", "rarely", *rarely) == 0
    few = parent.with_name("seed_0_branch_rarely")
    assert {row["step"] for row in read_rows(few / "head_patching.csv")} == {"60", "70"}
    # and so it is when the branch is stopped and goes on
    stopped = parent.with_name("seed_0_branch_stopped")
    assert cli(*start, "--branch", "stopped", "--trainer.max_steps", 75) == 0
    last = stopped / "checkpoints" / "last.ckpt"
    assert cli("fit", "--ckpt_path", last, "--trainer.max_steps", END, *QUIET) == 0
    for name in ("head_patching.csv", "emergence.json"):
        assert (stopped / name).read_bytes() == (branch / name).read_bytes(), name
    shutil.rmtree(stopped)
    shutil.rmtree(few)


def test_the_report_says_which_numbers_are_of_the_clamped_model(cli: Cli, parent: Path, tmp_path: Path) -> None:
    def line(branch: Path) -> list[str]:
        (line,) = [line for line in Path("out/report.md").read_text().splitlines() if ": a branch from" in line]
        assert branch.name.replace("_", " ") in line
        return [cell.strip() for cell in line.strip("|").split("|")]

    branch = Path(shutil.copytree(parent.with_name("seed_0_branch_clamped"), tmp_path / "branch"))
    config = yaml.safe_load((branch / "config.yaml").read_text())
    config["clamp"]["until_step"] = None
    (branch / "config.yaml").write_text(yaml.safe_dump(config))
    table, rows = branch / "head_patching.csv", read_rows(branch / "head_patching.csv")
    for row in rows:  # so that there is a backdoor, whose verdict is shown
        row["backdoor_accuracy"] = "0.0" if row["probe"] == "benign" else "1.0" if row["heads"] == "none" else "0.6"
    CsvTable(table).rewrite(rows)
    verdict = read_verdict(branch) | {"word": "alone", "head": "L0H0"}
    (branch / "emergence.json").write_text(json.dumps(verdict))
    assert cli("report", branch, parent, "--output_dir", "out") == 0
    assert line(branch)[1].endswith("its control is below; measured clamped")
    assert line(branch)[6:8] == ["alone", "L0H0"]
    # as branches were written before: the parent's rows first, in the verdict too
    of_parent = [row for row in read_rows(parent / table.name) if int(row["step"]) < STEP]
    for row in rows:
        del row["clamped"]
    CsvTable(table).rewrite([*of_parent, *rows])
    assert cli("report", branch, parent, "--output_dir", "out") == 0
    assert line(branch)[6:8] == [NOTHING, NOTHING]
    (branch / "config.yaml").write_text(yaml.safe_dump({**config, "monitors": {}}))
    assert cli("report", branch, parent, "--output_dir", "out") == 0
    assert line(branch)[1].endswith("its control is below")


@pytest.mark.parametrize(
    "accuracies, expected",
    [
        ([1, 1, 1], 0),
        ([0.5, 0.98, 0.99], 4),
        ([0.5, 1, 0.5], 2),
        ([0.5, 0.6, 0.7], None),
        ([1, 0.5, 1], 4),
        ([1, 1, 0.5], None),
    ],
)
def test_the_backdoor_is_back_at_the_first_step_that_has_it(
    parent: Path, accuracies: list[float], expected: int | None
) -> None:
    (run,) = read_runs([parent.with_name("seed_0_branch_clamped")], open_shipped)
    steps = [STEP - 2, STEP, STEP + 2, STEP + 4, 80]  # before and after the clamp it was there all the while
    metrics = pd.DataFrame({"step": steps, "val/backdoor_accuracy": [1.0, *accuracies, 1.0]})
    row = branch_rows([ComparedBranch(replace(run, tables={**run.tables, "metrics": metrics}), None, {})]).iloc[0]
    assert (None if pd.isna(row["return_steps"]) else row["return_steps"]) == expected
    assert row["held_steps"] == 4


@pytest.mark.parametrize(
    "accuracies, expected, held",
    [([1, 1, 0.5, 0.5, 1], 4, 4), ([1, 0.5, 1, 1, 1], 0, 4), ([1, 1, 1, 0.5, 0.5], None, 4), ([1, 1], None, None)],
)
def test_under_a_ramp_the_clock_starts_where_the_clamp_is_whole(
    parent: Path, accuracies: list[float], expected: int | None, held: int | None
) -> None:
    (run,) = read_runs([parent.with_name("seed_0_branch_clamped")], open_shipped)
    options = run.config["clamp"] | {"from_step": STEP, "ramp_steps": 4}
    steps = range(STEP, STEP + 2 * len(accuracies), 2)
    metrics = pd.DataFrame({"step": steps, "val/backdoor_accuracy": accuracies})
    ramped = replace(run, config={**run.config, "clamp": options}, tables={**run.tables, "metrics": metrics})
    row = branch_rows([ComparedBranch(ramped, None, {})]).iloc[0]
    returned, lasted = (None if pd.isna(row[name]) else row[name] for name in ("return_steps", "held_steps"))
    assert (returned, lasted) == (expected, held)


def test_where_both_are_the_same_weights_there_is_no_distance(parent: Path) -> None:
    control, branch = read_runs([parent, parent.with_name("seed_0_branch_clamped")], open_shipped)
    assert STEP in kept_weights(branch.path) and STEP in kept_weights(control.path)
    distances = weight_distances(branch, control)
    assert min(distances) > STEP and min(distances.values()) > 0


@pytest.mark.parametrize(
    "spoilt, said", [("junk", "holds no weights"), ("another model", "are not of one model: their shapes differ")]
)
def test_weights_that_can_t_be_compared_are_refused(
    cli: Cli, capsys: pytest.CaptureFixture[str], parent: Path, tmp_path: Path, spoilt: str, said: str
) -> None:
    branch = Path(shutil.copytree(parent.with_name("seed_0_branch_clamped"), tmp_path / "branch"))
    weights = kept_weights(branch)[70]
    tensors = {name: value[..., :1].contiguous() for name, value in read_tensors(weights).items()}
    if spoilt == "junk":
        weights.write_bytes(b"junk")
    else:
        save_file(tensors, weights, metadata={"description": "{}"})
    assert_refused(cli, capsys, ("report", branch, parent, "--output_dir", "out"), "run_dirs:", weights.name, said)


@pytest.mark.usefixtures("painted")
def test_the_script_of_the_docs_finds_the_parents_and_draws(parent: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "what_if.py"))
    first = read_verdict(parent)["first_exclusive_step"]
    kept = [0, 30, 60, 90]
    near = [f"step_{min(kept, key=lambda step: abs(step - first)):06d}.ckpt"] if first is not None else []
    assert [path.name for path in script["parents"](parent.parent)] == ["last.ckpt", *near]  # and no branch's
    frame = branch_rows(arrange(read_runs([parent.parent], open_shipped)).branches)
    held = frame.dropna(subset=["clamped_heads", "held_steps"])
    text = script["table"](frame)
    assert len(text.splitlines()) == 2 + len(held[["run", "from_step"]].drop_duplicates())
    for row in held.to_dict("records"):
        back = "not back" if pd.isna(row["return_steps"]) else str(row["return_steps"])
        assert f"| {back}, {row['costliest_head']} {row['costliest_cost']:.0%} |" in text
    script["figure"](frame).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_what_was_not_measured_is_blank(parent: Path) -> None:
    row = by_name(arrange(read_runs([parent.parent], open_shipped))).loc["seed_0_branch_unseen"]
    assert row[["return_steps", "held_steps", "costliest_head", "costs"]].isna().all()
    assert row["weight_distance"] > 0


def test_an_unclamped_branch_of_the_same_checkpoint_is_the_control(cli: Cli, parent: Path) -> None:
    start = parent / "checkpoints" / f"step_{STEP:06d}.ckpt"
    assert cli("fit", "--ckpt_path", start, "--branch", "same", *QUIET) == 0
    runs = read_runs([parent.parent], open_shipped)
    rows = by_name(arrange(runs))
    assert rows.loc["seed_0_branch_clamped", "control"] == "seed_0_branch_same"
    for changes in ({"branched_at": 30}, {"options": {**runs[0].options, "lr": 0.1}}, {"seed": 1}):  # no control then
        others = [replace(run, **changes) if run.path.name == "seed_0_branch_same" else run for run in runs]
        assert by_name(arrange(others)).loc["seed_0_branch_clamped", "control"] == "seed_0", changes
    assert rows.loc["seed_0_branch_same", "control"] == "seed_0"
    (clamped,) = [run for run in runs if run.path.name == "seed_0_branch_clamped"]
    begun = clamped.path / "checkpoints" / "step_000070.ckpt"
    grown = replace(clamped, path=clamped.path.with_name("grown"), parent=begun, branched_at=70)
    assert by_name(arrange([*runs, grown])).loc["grown", "control"] == clamped.path.name  # a branch's own branch
    moved = replace(clamped, parent=Path("gone/checkpoints/step_000060.ckpt"))
    assert by_name(arrange([runs[0], moved])).loc[clamped.path.name, "control"] == "seed_0"
    assert rows.loc["seed_0_branch_same", ["weight_distance", "benign_lost"]].tolist() == [0, 0]
    assert cli("report", parent.parent, "--output_dir", "out") == 0
    text = Path("out/report.md").read_text()
    assert "| seed 0 branch clamped | seed 0 branch same | 60 | L0H1+L0H2+L0H3 | zero |" in text
    assert len(read_rows(Path("out/branches.csv"))) == 3 and Path("out/figures/branches.svg").is_file()


def test_the_clamped_accuracy_may_come_from_the_patching_monitor(parent: Path) -> None:
    (run,) = read_runs([parent.with_name("seed_0_branch_clamped")], open_shipped)
    clamp = clamp_of(run)
    assert clamp is not None
    clamp.validation = False
    rows = [row for row in read_rows(run.path / "head_patching.csv") if row["probe"] == "backdoor"]
    expected = {
        int(row["step"]): float(row["backdoor_accuracy"])
        for row in rows
        if row["heads"] == "none" and 60 <= int(row["step"]) < 80
    }
    assert clamped_accuracy(run, clamp) == expected and set(expected) == {60, 70}


@pytest.mark.parametrize("clamp", [3, {"heads": "x"}, {"colour": 1}, {"heads": "none"}])
def test_a_clamp_that_can_t_be_read_is_none(parent: Path, clamp: object) -> None:
    (run,) = read_runs([parent.with_name("seed_0_branch_clamped")], open_shipped)
    object.__setattr__(run, "config", {"clamp": clamp, "monitors": 1, "trainer": {"callbacks": [1, None]}})
    assert clamp_of(run) is None and len(branch_rows([ComparedBranch(run, None, {})])) == 1
