"""Which runs stand beside each other: splits, controls, branches, and runs of other people's tasks."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lit_backdoor.callbacks import (
    AttentionMonitor,
    EmergenceMonitor,
    HeadAttributionMonitor,
    HeadPatchingMonitor,
    PathPatchingMonitor,
    SpecificityMonitor,
)
from lit_backdoor.logger import RunLogger
from lit_backdoor.pretrained import open_shipped
from lit_backdoor.report import read
from lit_backdoor.report.study import arrange
from lit_backdoor.runs.reading import read_runs
from tests.helpers.configs import save_config
from tests.helpers.copy_task import CopyDataWithProbes, CopyModule, train
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli, read_rows, train_run
from tests.report.conftest import small_config


def copy(runs_dir: Path, name: str, **options: object) -> Path:
    """A copy of mod 1, seed 0 with other options and no checkpoints."""
    run = Path(shutil.copytree(runs_dir / "mod1" / "seed_0", runs_dir / name))
    shutil.rmtree(run / "checkpoints")
    stored = yaml.safe_load((run / "hparams.yaml").read_text())
    (run / "hparams.yaml").write_text(yaml.safe_dump(stored | options))
    return run


def test_another_split_is_another_run(runs_dir: Path) -> None:
    copy(runs_dir, "mod1/split_3", split_seed=3)
    study = arrange(read_runs([runs_dir], open_shipped))
    assert [run.name for run in study.runs if run.p1 == 1] == [
        "mod 1, seed 0", "mod 1, seed 0, split 3", "mod 1, seed 1",
    ]  # fmt: skip
    assert not study.controls


def test_runs_of_several_folders_or_lengths_are_several_series(cli: Cli, runs_dir: Path) -> None:
    """Old and new runs of one model, and a census of short ones: never one group, not even of one seed and split."""
    for name, steps in (("new/mod1+data.split_seed=0/seed_0", 90), ("new/mod1+data.split_seed=1/seed_0", 90),
                        ("new/mod1+data.split_seed=0/seed_5", 70)):  # fmt: skip
        (runs_dir / name).parent.mkdir(parents=True, exist_ok=True)
        run = copy(runs_dir, name, split_seed=int("split_seed=1" in name), seed_everything=5 * int("seed_5" in name))
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(config.replace("max_steps: 60", f"max_steps: {steps}"))
        verdict = json.loads((run / "emergence.json").read_text())  # only the longer ones have fitted
        state = {"state": "fitted", "fitted_step": 70} if steps == 90 else {"state": "not fitted", "fitted_step": None}
        (run / "emergence.json").write_text(json.dumps(verdict | state | {"generalised_step": None}))
        metrics = (run / "metrics.csv").read_text()  # so that it is no copy, and the longest
        (run / "metrics.csv").write_text(metrics + f"{steps}{metrics.splitlines()[-1].removeprefix('60')}\n")
    study = arrange(read_runs([runs_dir], open_shipped))
    groups: dict[str, list[str]] = {}
    for run in study.runs:
        groups.setdefault(run.group, []).append(run.name)
    old, longer, shorter = "mod 1 (mod1)", "mod 1 (new/mod1, 90 steps)", "mod 1 (new/mod1, 70 steps)"
    assert groups == {
        "clean": ["clean, seed 0"],
        old: [f"{old}, seed 0", f"{old}, seed 1"],
        shorter: [f"{shorter}, seed 5"],
        longer: [f"{longer}, seed 0", f"{longer}, seed 0, split 1"],
        "mod 5": ["mod 5, seed 0"],
    }
    assert [run.group for run in study.compared if run.p1 == 1] == [longer, longer]  # the longest
    enough = [run for run in study.runs if run.group == old] * 3  # copies stand in for seeds: six, of 60 steps
    compared = replace(study, runs=[run for run in study.runs if run.group == longer] + enough).compared
    assert [run.group for run in compared] == [old] * 6  # the longest one with enough runs for a verdict
    assert cli("report", runs_dir, "--output_dir", "out") == 0
    text = Path("out/report.md").read_text()
    assert f"### M{old[1:]}" in text and f"M{longer[1:]}: where the backdoor sits" in text
    (said,) = re.findall(r"\*([^*]*): which runs these are\.\* \*\*(.*)\*\*", text)
    assert said == (
        f"M{longer[1:]}",
        "2 of 3 runs in this folder; the others were asked for 70 steps at most. "
        "By then 2 of these 2 had fitted, and 0 of the other 1.",
    )
    patched = [
        row for row in read_rows(Path("out/comparison.csv")) if row["quantity"].startswith("backdoor accuracy, p")
    ]
    assert {row["n_runs"] for row in patched} == {"2"}
    ranks = read_rows(Path("out/ranks.csv"))
    assert {row["group"]: row["n_runs"] for row in ranks if row["ranks"] == "none"}[old] == "2"


@pytest.mark.parametrize(
    "folder, names",
    [("mod1/mod1+data.split_seed=1", ["mod1", "mod1/mod1"]), ("new/new", ["mod1", "new"])],
    ids=["both would be one name", "said once"],
)
def test_a_name_that_repeats_itself_is_said_once_where_that_is_clear(
    runs_dir: Path, folder: str, names: Sequence[str]
) -> None:
    copy(runs_dir, f"{folder}/seed_7", seed_everything=7)
    runs = arrange(read_runs([runs_dir], open_shipped)).runs
    assert list(dict.fromkeys(run.series for run in runs if run.p1 == 1)) == names


def test_two_runs_of_one_seed_are_named_in_the_refusal(runs_dir: Path) -> None:
    """With two series, whose order is not that of the seeds."""
    copy(runs_dir, "b/seed_0", seed_everything=8)
    again = copy(runs_dir, "b/again", seed_everything=8)
    with pytest.raises(ValueError, match=f"{again} and .*b/seed_0 are both mod 1, seed 8; give one of them"):
        arrange(read_runs([runs_dir], open_shipped))


def test_runs_that_are_just_being_trained_keep_all_from_being_judged(runs_dir: Path) -> None:
    """The paper's options and steps are stood in for: what counts is the shortest of the compared runs."""
    runs = [run for run in read_runs([runs_dir], open_shipped) if run.p1 == 1]
    metrics = runs[0].metrics
    done = replace(runs[0], tables={**runs[0].tables, "metrics": metrics.assign(step=metrics["step"] + 20_000)})
    (said,) = [text for text in arrange([done, runs[1]]).differs_from_paper if "steps" in text]
    assert said == "steps of mod 1: 60 to 20,060"
    assert not [text for text in arrange([done]).differs_from_paper if "steps" in text]


def test_a_run_killed_after_its_first_probe_is_in_the_report(cli: Cli, runs_dir: Path) -> None:
    """Its emergence.json is from before anything was validated, so no rule has a state."""
    verdict = json.loads((runs_dir / "mod1" / "seed_1" / "emergence.json").read_text())
    early = {key: value for key, value in verdict.items() if not key.startswith(("benign_", "backdoor_"))}
    (runs_dir / "mod1" / "seed_1" / "emergence.json").write_text(json.dumps(early))
    assert cli("report", runs_dir, "--output_dir", "out") == 0


def test_a_verdict_by_other_thresholds_is_worked_out_anew(runs_dir: Path, tmp_path: Path) -> None:
    file = runs_dir / "mod1" / "seed_0" / "emergence.json"
    verdict = json.loads(file.read_text())
    for changed in ({"threshold": 0.9}, {"probe": "benign"}, {"min_accuracy": 0.0}):
        file.write_text(json.dumps(verdict | {"head": "L0H3", "first_cost_step": 1} | changed))
        (run, *_) = [run for run in read([runs_dir], tmp_path / "report").runs if run.p1 == 1]
        assert run.emergence == verdict, changed


def test_a_clamped_run_is_a_control(runs_dir: Path) -> None:
    run = copy(runs_dir, "mod1/clamped")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"clamp": {"heads": "L0H2"}}))
    ((_, difference),) = arrange(read_runs([runs_dir], open_shipped)).controls
    assert difference == "clamp: {'heads': 'L0H2'}"


@pytest.mark.parametrize("clamped_from", [40, 60])
def test_a_run_that_was_clamped_at_any_time_is_a_control(runs_dir: Path, clamped_from: int) -> None:
    run = copy(runs_dir, "mod1/clamped")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for step in (40, 60):  # continued twice, once with a clamp
        clamp = {"clamp": {"heads": "L0H2"}} if step == clamped_from else {}
        (run / f"config_from_step_{step}.yaml").write_text(yaml.safe_dump(config | clamp))
    ((_, difference),) = arrange(read_runs([runs_dir], open_shipped)).controls
    assert difference == "clamp: {'heads': 'L0H2'}"


def test_runs_that_differ_in_an_option_are_controls(cli: Cli, runs_dir: Path) -> None:
    copy(runs_dir, "other_rate", lr=0.1)
    copy(runs_dir, "inert", moduli=[11, 11])
    copy(runs_dir, "permuted", permute_trigger=True)
    copy(runs_dir, "tokens", trigger_tokens=[11, 12])
    copy(runs_dir, "number", moduli=[13, 1])
    study = arrange(read_runs([runs_dir], open_shipped))
    assert {run.path.name: difference for run, difference in study.controls} == {
        "other_rate": "lr: 0.1",
        "inert": "moduli: [11, 11] (the trigger switches nothing)",
        "permuted": "permute_trigger: True",
        "tokens": "trigger_tokens: [11, 12]",
        "number": "P0: 13",
    }
    assert len(study.runs) == 4
    assert cli("report", runs_dir, "--output_dir", "out") == 0
    text = Path("out/report.md").read_text()
    assert "## Controls" in text and "permute trigger: True" in text.replace("_", " ")
    assert len(read_rows(Path("out/seeds.csv"))) == 4  # no statement counts a control


def test_a_branch_stands_beside_its_control(cli: Cli, made: Path, tmp_path: Path) -> None:
    """Made as the README says: from an older checkpoint, into a new folder."""
    runs = Path(shutil.copytree(made, tmp_path / "runs"))
    control = runs / "mod1" / "seed_0"
    shutil.copy(control / "checkpoints" / "last.ckpt", control / "checkpoints" / "step_000060.ckpt")
    config = small_config([11, 1])
    config["trainer"]["max_steps"] = 80
    checkpoint = control / "checkpoints" / "step_000060.ckpt"
    longer = save_config(config, tmp_path / "longer.yaml")
    branch = train_run(runs / "branches" / "clamped", f"--ckpt_path={checkpoint}", config=longer)
    study = arrange(read_runs([runs], open_shipped))
    ((run, parent, _),) = study.branches
    assert (run.path.name, run.step) == (branch.name, 80) and parent is not None and parent.path.name == "seed_0"
    assert len(study.runs) == 4
    assert cli("report", runs, "--output_dir", "out") == 0
    text = Path("out/report.md").read_text()
    assert "clamped: a branch from step" in text and "seed_0: the control" in text.replace("seed 0:", "seed_0:")


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_stranger_s_run_has_tables_and_figures(cli: Cli, tmp_path: Path) -> None:
    """Somebody else's module, data and names: no rule, no P1, nothing of the paper."""
    where = {"model_attr": "parts.net", "every_n_steps": 2}
    monitors = (HeadAttributionMonitor(**where), HeadPatchingMonitor(**where), EmergenceMonitor("copy"))
    logger = RunLogger(str(tmp_path), name="mine", version="copy")
    train(tmp_path, *monitors, datamodule=CopyDataWithProbes(), logger=logger, log_every_n_steps=1)
    assert cli("report", tmp_path / "mine", "--output_dir", "out") == 0
    text = Path("out/report.md").read_text()
    assert text.startswith("# Attention heads over training: 1 run") and "mine/copy" in text
    assert "the paper's" not in text.split("##", 1)[0] and "Verdicts" not in text
    last = [row for row in read_rows(tmp_path / "mine" / "copy" / "head_patching.csv") if row["step"] == "6"]
    for row in last:
        if row["heads"].count("+") == 0:
            assert re.search(rf"\| {row['heads']} \| +{float(row['recipient_accuracy']):.2%} \|", text), row
    figures = {path.name for path in Path("out/figures").iterdir()}
    assert figures >= {"own_mine_copy__attribution.svg", "own_mine_copy__copy.svg"}


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
@pytest.mark.parametrize(
    ("kinds", "figures"),
    [
        ([HeadAttributionMonitor], {"attribution"}),
        ([AttentionMonitor, SpecificityMonitor], {"attention", "specificity"}),
        ([PathPatchingMonitor, HeadPatchingMonitor], {"copy", "copy_circuit"}),
    ],
)
def test_any_monitor_of_a_stranger_s_is_enough(
    cli: Cli, tmp_path: Path, logger: Any, kinds: Sequence[Any], figures: set[str]
) -> None:
    """Lightning's own loggers, and options that are called as ours and hold a tuple, as Lightning writes it."""
    module = CopyModule("HookedTransformer")
    module.save_hyperparameters({"moduli": (3, 4)})
    module.parts["net"].set_use_split_qkv_input(True)
    module.parts["net"].set_use_hook_mlp_in(True)
    monitors = [kind(model_attr="parts.net", every_n_steps=3) for kind in kinds]
    train(tmp_path, *monitors, module=module, datamodule=CopyDataWithProbes(), logger=logger(tmp_path, name="copy"))
    assert "moduli: !!python/tuple" in (tmp_path / "copy" / "version_0" / "hparams.yaml").read_text()
    assert cli("report", tmp_path / "copy", "--output_dir", "out") == 0
    text = Path("out/report.md").read_text()
    assert "## copy/version_0" in text and "the paper's tables" not in text and "Verdicts" not in text
    names = {path.stem.removeprefix("own_copy_version_0__") for path in Path("out/figures").iterdir()}
    assert names == figures
    for name in figures:
        assert f"own_copy_version_0__{name}.svg" in text
    if HeadAttributionMonitor in kinds:
        shutil.copytree(tmp_path / "copy", tmp_path / "again" / "copy")  # another run whose last folders are called so
        assert cli("report", tmp_path / "copy", tmp_path / "again", "--output_dir", "both") == 0
        assert {path.name for path in Path("both/figures").iterdir()} == {
            "own_copy_version_0__attribution.svg", "own_again_copy_version_0__attribution.svg"
        }  # fmt: skip
        rows = read_rows(tmp_path / "copy" / "version_0" / "head_attribution.csv")[-4:]
        for row in rows:
            cells = (f"L{row['layer']}H{row['head']}", f"{float(row['mean_logit']):.2f}")
            assert re.search(r" \| +".join(map(re.escape, cells)), text), row


def test_a_run_without_monitors_has_nothing_to_report(
    cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("step,val/loss\n0,1.0\n")
    (run / "hparams.yaml").write_text("net: !!python/object/apply:os.mkdir [broken_into]\n")
    assert_refused(cli, capsys, ("report", run, "--output_dir", "out"), "no table of heads", "head_patching")
    assert not Path("broken_into").exists()


def test_what_lies_inside_a_run_is_no_other_run(runs_dir: Path) -> None:
    """A replay writes its tables into a folder of the run."""
    run = runs_dir / "mod1" / "seed_0"
    (run / "replay").mkdir()
    shutil.copy(run / "head_patching.csv", run / "replay")
    assert len(read_runs([runs_dir], open_shipped)) == 4


def test_several_triggers_are_reported_without_the_papers_parts(runs_dir: Path, cli: Cli) -> None:
    copy(runs_dir, "multi", moduli=[11, 1, 5])
    assert cli("report", runs_dir / "multi", "--output_dir", "out") == 0
    assert "## runs/multi" in Path("out/report.md").read_text()
