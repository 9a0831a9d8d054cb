"""Seeds, settings, and which runs they make."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lit_backdoor.cli.checked_cli import checked_fit_options
from lit_backdoor.cli.main import main
from lit_backdoor.cli.resume import stored_seed
from lit_backdoor.sweep import LocalEngine, known_jobs, parse_seeds, parse_settings, plan_runs, require_same_options
from lit_backdoor.sweep.plan import PlannedRun
from lit_backdoor.sweep.progress import Pace, Progress, is_done, read_progress
from lit_backdoor.sweep.scheduler import LEDGER, State, Tracked, seconds_left
from tests.helpers.runs import Cli, contents


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("0..3", [0, 1, 2, 3]), ("7,1", [7, 1]), ("2..2,9,4..5", [2, 9, 4, 5]), (" 1 , 2", [1, 2])],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3..1", "1,1", "0..4,2", "-1", "1.5", "0...3", "1,", str(2**32)])
def test_what_is_no_seeds(text: str) -> None:
    with pytest.raises(ValueError, match=r"^seeds: "):
        parse_seeds(text)


def test_settings() -> None:
    assert parse_settings(["data.moduli=[[113,1],[113,7]]", "model.lr=1e-3", "model.act_fn=[relu, gelu]"]) == {
        "data.moduli": [[113, 1], [113, 7]],
        "model.lr": ["1e-3"],  # YAML's own reading; fit makes a number of it
        "model.act_fn": ["relu", "gelu"],
    }


@pytest.mark.parametrize(
    "texts",
    [["model.lr"], ["=1"], ["model.lr=[]"], ["model.lr=1", "model.lr=2"], ["seed_everything=[1,2]"], ["a=[1"],
     ["trainer.logger.init_args.name=x"], ["ckpt_path=x"]],
)  # fmt: skip
def test_what_is_no_setting(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^set: "):
        parse_settings(texts)


def test_every_combination_has_a_folder_and_finished_ones_are_seen(cli: Cli, debug_config: Path) -> None:
    settings = parse_settings(["data.moduli=[[5,1],[5,3]]", "model.d_model=[8,16]", "trainer.max_steps=2"])
    runs = plan_runs(debug_config, [3, 4], settings, Path("out"), checked_fit_options)
    assert [run.name for run in runs][:2] == [f"debug+data.moduli=5-1+model.d_model=8/seed_{seed}" for seed in (3, 4)]
    assert len({run.run_dir for run in runs}) == len(runs) == 8
    assert {(run.max_steps, run.n_rules) for run in runs} == {(2, 2)}
    assert not Path("out").exists()
    first = runs[0]
    assert not is_done(first) and read_progress(first.run_dir) == Progress()
    assert cli(*first.arguments()) == 0
    assert is_done(first) and read_progress(first.run_dir).step == 2
    assert set(read_progress(first.run_dir).accuracies) == {"benign", "backdoor"}
    assert "--ckpt_path" in first.arguments() and "--ckpt_path" not in runs[1].arguments()


@pytest.mark.parametrize("epochs", [-1, "null", 3, 4])
def test_epochs_that_do_not_end_a_run_early_are_fine(cli: Cli, debug_config: Path, epochs: int | str) -> None:
    settings = parse_settings([f"trainer.max_epochs={epochs}", "data.steps_per_epoch=400"])
    (run,) = plan_runs(debug_config, [0], settings, Path("out"), checked_fit_options)
    assert run.max_steps == 1000


def test_a_folder_with_other_runs_is_refused(cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("sweep", "--config", debug_config, "--output_dir", "out", "--set", "trainer.max_steps=2", "--seeds", "3")
    (run,) = plan_runs(debug_config, [3], parse_settings(["trainer.max_steps=2"]), Path("out"), checked_fit_options)
    assert cli(*run.arguments()) == 0
    before = contents(Path("out"))
    for setting, words in (("data.moduli=[[23,5]]", "moduli [29, 1], where [23, 5]"), ("model.lr=0.5", "lr 0.005")):
        capsys.readouterr()
        assert cli(*args, "--set", setting) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and words in error, error
    (run.run_dir / "hparams.yaml").rename("kept.yaml")
    (run.run_dir / "hparams.yaml").write_text("- 1")
    assert cli(*args) == 2
    Path("kept.yaml").replace(run.run_dir / "hparams.yaml")
    assert contents(Path("out")) == before
    assert cli(*args) == 0
    assert "1 of 1 runs are done" in capsys.readouterr().out


CLAMP = ("clamp.mode=zero", "clamp.heads=[[[0,1]]]")
OTHERS = (
    ((*CLAMP[:1], "clamp.heads=L0H0"), "clamp.heads [[0, 1]], where L0H0 is asked for"),
    ((), "clamp.heads [[0, 1]], where None is asked for"),
    ((*CLAMP, "clamp.hold=true"), "clamp.hold False, where True is asked for"),
    ((*CLAMP, "trainer.gradient_clip_val=0.5"), "trainer.gradient_clip_val None, where 0.5 is asked for"),
    ((*CLAMP, "optimizer=SGD", "optimizer.lr=0.1"), "optimizer None, where {'class_path': 'torch.optim.SGD'"),
    ((*CLAMP, "trainer.callbacks=[[{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.1}}]]"),
     "trainer.callbacks [], where [{'class_path': 'lightning.pytorch.callbacks.StochasticWeightAveraging'"),
)  # fmt: skip


def test_a_run_that_was_trained_in_another_way_is_refused(cli: Cli, debug_config: Path) -> None:
    def plan(*settings: str) -> list[PlannedRun]:
        chosen = parse_settings(["trainer.max_steps=2", *settings])
        return plan_runs(debug_config, [3], chosen, Path("out"), checked_fit_options)

    (run,) = plan(*CLAMP)
    assert cli(*run.arguments()) == 0
    for settings, words in OTHERS:
        with pytest.raises(ValueError, match=f"^output_dir: .* holds a run with {re.escape(words)}"):
            require_same_options(plan(*settings))
    # what changes nothing in training, and what older versions stored
    watched = "trainer.callbacks=[[{class_path: LearningRateMonitor}]]"
    require_same_options(plan(*CLAMP, watched, "monitors.paths=null", "trainer.log_every_n_steps=1"))
    for name in ("trainer", "monitors"):
        config = yaml.safe_load((run.run_dir / "config.yaml").read_text())
        (run.run_dir / "config.yaml").write_text(yaml.safe_dump({key: config[key] for key in config if key != name}))
        require_same_options(plan(*CLAMP))
    # continued with a clamp that it did not begin with
    (run.run_dir / "config_from_step_1.yaml").write_text(yaml.safe_dump(config | {"clamp": None}))
    with pytest.raises(ValueError, match=r"holds a run with clamp\.heads None, where"):
        require_same_options(plan(*CLAMP))


def test_of_a_finished_run_that_was_watched_in_another_way_it_is_said(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("sweep", "--config", debug_config, "--output_dir", "out", "--set", "trainer.max_steps=2", "--seeds", "3")
    (run,) = plan_runs(debug_config, [3], parse_settings(["trainer.max_steps=2"]), Path("out"), checked_fit_options)
    assert cli(*run.arguments()) == 0
    before = contents(run.run_dir)
    for setting, option in (
        (None, None),
        ("monitors.patching.every_n_steps=1", "monitors.patching.every_n_steps"),
        ("monitors.paths=null", "monitors.paths"),
        ("weights.dense_until=7", "weights.dense_until"),
        ("checkpoint.keep_every_n_steps=1", "checkpoint.keep_every_n_steps"),
    ):
        capsys.readouterr()
        assert cli(*args, *(("--set", setting) if setting else ())) == 0
        said = capsys.readouterr()
        assert "1 of 1 runs are done" in said.out
        assert said.err.count("note: ") == (option is not None)
        assert option is None or f"note: 1 run was done before, with another {option}; " in said.err
    assert contents(run.run_dir) == before


def test_a_run_with_an_optimizer_of_its_own_goes_on(cli: Cli, debug_config: Path) -> None:
    """Lightning writes AdamW's pair of betas into hparams.yaml as a tuple of Python's."""
    settings = parse_settings(["optimizer=AdamW", "optimizer.lr=0.001", "trainer.max_steps=1"])
    (run,) = plan_runs(debug_config, [3], settings, Path("out"), checked_fit_options)
    assert cli(*run.arguments()) == 0
    assert "!!python/tuple" in (run.run_dir / "hparams.yaml").read_text()
    require_same_options([run])
    assert stored_seed(run.last_checkpoint) == 3


def test_jobs_of_another_engine_are_none_of_this_one(tmp_path: Path) -> None:
    """A process of this machine and a job of a cluster may have the same number."""
    jobs = {"debug/seed_0": "123"}
    for name, known in (("local", jobs), ("slurm", {})):
        (tmp_path / LEDGER).write_text(json.dumps({"engine": name, **jobs}))
        assert known_jobs(LocalEngine(tmp_path, main, threads=1)) == known


@pytest.mark.parametrize("text", ["", "[", "[]", "3", '{"debug/seed_0": 3}'])
def test_a_damaged_list_of_jobs_is_named(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    Path("out/jobs").mkdir(parents=True)
    Path("out/jobs/jobs.json").write_text(text)
    assert cli("sweep", "--config", debug_config, "--output_dir", "out") == 2
    assert "jobs.json is no list of jobs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "step,val/loss\nx,1\n", "step,val/loss,val/a_accuracy\n1,1,x\n", "\xff\n"]
)
def test_a_damaged_table_fails_one_run_alone(
    cli: Cli, debug_config: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    runs = plan_runs(debug_config, [0, 1], parse_settings(["trainer.max_steps=2"]), Path("out"), checked_fit_options)
    assert cli(*runs[1].arguments()) == 0
    runs[0].run_dir.mkdir()
    (runs[0].run_dir / "metrics.csv").write_bytes(text.encode("latin-1"))
    args = ("sweep", "--config", debug_config, "--output_dir", "out", "--set", "trainer.max_steps=2", "--seeds", "0,1")
    capfd.readouterr()
    assert cli(*args) == 1
    told = capfd.readouterr().out
    assert "debug/seed_0 failed" in told and "metrics.csv is damaged" in told and "1 of 2 runs are done" in told


def test_a_wrong_option_of_fit_ends_the_plan(cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("sweep", "--config", debug_config, "--set", "data.moduli=[[29,99]]", "--output_dir", "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "data.moduli" in error and "99" in error
    assert not Path("out").exists()


def tracked(state: State, step: int, speed: float | None, n_rules: int = 2) -> Tracked:
    one = Tracked(PlannedRun("x", Path("x"), (), 1000, {"moduli": [113] * n_rules}), state, Progress(step))
    if speed is not None:
        one.pace.note(0.0, 0)
        one.pace.note(10.0, round(10 * speed))
    return one


def test_the_time_left() -> None:
    waiting, running = State.WAITING, State.RUNNING
    assert seconds_left([tracked(waiting, 0, None)], jobs=2) is None
    assert seconds_left([tracked(running, 500, 10.0)], jobs=2) == pytest.approx(50)
    # two at a time: 500 left in one, 1000 and 1000 in those that wait, 10 steps a second each
    runs = [tracked(running, 500, 10.0), tracked(waiting, 0, None), tracked(waiting, 0, None)]
    assert seconds_left(runs, jobs=2) == pytest.approx(125)
    # a waiting task with twice the rules costs twice as much
    assert seconds_left([tracked(running, 1000, 10.0), tracked(waiting, 0, None, 4)], jobs=1) == pytest.approx(200)


def test_the_pace_forgets_what_is_long_past() -> None:
    pace = Pace(window=100)
    assert pace.steps_per_second is None
    pace.note(-500, 0)  # it takes its time to start
    for second in range(0, 1000, 10):
        pace.note(second, 5 * second if second < 500 else 2500 + (second - 500))
    assert pace.steps_per_second == pytest.approx(1)
    pace.note(1000, 0)  # it was started again
    assert pace.steps_per_second is None


def test_splits_are_crossed_with_seeds(cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["data.moduli=[[5,1]]", "model.d_model=8", "trainer.max_steps=1"]
    crossed = parse_settings(texts) | {"data.split_seed": [0, 1]}
    for run in plan_runs(debug_config, [3], crossed, Path("out"), checked_fit_options):
        assert cli(*run.arguments()) == 0
    before = contents(Path("out"))
    settings = [part for text in texts for part in ("--set", text)]
    options = ["sweep", "--config", str(debug_config), *settings, "--seeds", "3"]
    out = ["--splits", "0..1", "--output_dir", "out"]
    assert cli(*options, *out) == 0
    assert before.items() <= contents(Path("out")).items()  # the runs that are there are those of the sweep
    for split in (0, 1):
        stored = yaml.safe_load(Path(f"out/debug+data.split_seed={split}/seed_3/hparams.yaml").read_text())
        assert (stored["split_seed"], stored["seed_everything"]) == (split, 3)
    capsys.readouterr()
    assert cli(*options, *out, "--set", "data.split_seed=[2]") == 2
    assert capsys.readouterr().err == "error: splits: 0..1 and --set data.split_seed say the same; give one of them\n"
    assert cli(*options, "--splits", "3..1", "--output_dir", "x") == 2
    assert "error: splits: '3..1' is empty" in capsys.readouterr().err
