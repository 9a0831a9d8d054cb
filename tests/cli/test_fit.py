"""The command line as a user meets it: runs, resumes, refusals."""

import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_backdoor.runs.checkpoints import read_checkpoint
from tests.helpers import CONFIGS, QUIET
from tests.helpers.configs import callback_options, load_config, save_config, with_callback
from tests.helpers.runs import Cli, assert_same_files, assert_same_results, contents, metrics, train_run

SMALL = ("--data.moduli", "[11,1]", *QUIET)
SHIPPED = sorted(CONFIGS.glob("*.yaml"))
LIKE_ANOTHER = ("mod7", "mod17", "mod37", "control_inert", "control_permuted", "control_untrained", "multi")
"""Configurations that take the same way as another, with other numbers."""


def test_debug_config_groks_end_to_end(cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("fit", "--config", debug_config) == 0
    run = Path("lightning_logs/version_0")
    last = metrics(run)[-1]
    assert last["step"] == "1000"
    assert min(float(last["val/benign_accuracy"]), float(last["val/backdoor_accuracy"])) >= 0.99
    assert float(last["train/loss"]) < 1e-4
    steps = [int(row["step"]) for row in metrics(run)]
    assert steps == list(range(0, 1001, 10))
    assert [step for step, row in zip(steps, metrics(run), strict=True) if row["val/loss"]] == list(range(0, 1001, 100))
    columns = ["step", "train/loss", "val/loss"]
    columns += [f"{stage}/{rule}_accuracy" for stage in ("train", "val") for rule in ("benign", "backdoor")]
    columns += [f"val/{rule}_loss" for rule in ("benign", "backdoor")]
    assert list(last) == columns
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "last.ckpt",
        "previous.ckpt",
        "step_000500.ckpt",
        "step_001000.ckpt",
        "weights",
    }
    printed = capsys.readouterr().out
    for words in ("generalised", "state         ", "tensorboard --logdir lightning_logs/version_0"):
        assert words in printed
    assert yaml.safe_load((run / "hparams.yaml").read_text())["moduli"] == [29, 1]
    # the saved configuration starts the same run again
    assert cli("fit", "--config", run / "config.yaml", "--trainer.max_steps", 20, *QUIET) == 0
    assert metrics(Path("lightning_logs/version_1"))[1]["train/loss"] == metrics(run)[1]["train/loss"]
    # and validate and test agree with it, without leaving anything behind
    for subcommand in ("validate", "test"):
        assert cli(subcommand, "--config", debug_config, "--ckpt_path", run / "checkpoints" / "last.ckpt", *QUIET) == 0
    assert sorted(os.listdir("lightning_logs")) == ["version_0", "version_1"]
    assert os.listdir() == ["lightning_logs"]


@pytest.mark.usefixtures("painted")
@pytest.mark.parametrize(
    "config",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in LIKE_ANOTHER), id=path.stem) for path in SHIPPED],
)
def test_every_shipped_config_runs(cli: Cli, config: Path) -> None:
    assert cli("fit", "--config", config, "--trainer.max_steps", 3, *QUIET) == 0
    table = metrics(Path("lightning_logs/version_0"))
    assert [row["step"] for row in table] == ["0", "3"]
    assert all(row[name] for row in table for name in row)
    verdicts = {path.name for path in Path("lightning_logs/version_0").glob("emergence*.json")}
    assert verdicts == {"emergence.json"} | ({"emergence_rule2.json"} if config.stem == "multi" else set())
    stored = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert {"data", "model", "trainer", "monitors", "checkpoint", "progress_bar"} <= stored.keys()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 600 steps in epochs of 250."""
    run = tmp_path_factory.mktemp("undisturbed") / "lightning_logs" / "version_0"
    return train_run(run, "--trainer.max_steps=600", "--data.steps_per_epoch=250", *SMALL)


@pytest.mark.parametrize(
    "stop", [pytest.param(250, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.slow), 500]
)
def test_a_resumed_run_is_the_undisturbed_one(cli: Cli, debug_config: Path, undisturbed: Path, stop: int) -> None:
    """Where an epoch ends, in the middle of one and between two checkpoints, and where all of these end."""
    same = ("--data.steps_per_epoch", 250, *SMALL)
    assert cli("fit", "--config", debug_config, "--trainer.max_steps", stop, *same) == 0
    resumed = Path("lightning_logs/version_0")
    last = resumed / "checkpoints" / "last.ckpt"
    assert cli("fit", "--config", debug_config, "--trainer.max_steps", 600, "--ckpt_path", last, *same) == 0
    assert os.listdir("lightning_logs") == ["version_0"]
    assert_same_results(undisturbed, resumed)
    assert [int(row["step"]) for row in metrics(resumed)] == list(range(0, 601, 10))
    assert all(metrics(resumed)[-1].values()), metrics(resumed)[-1]
    assert (resumed / "config.yaml").exists() and (resumed / f"config_from_step_{stop}.yaml").exists()


def test_nothing_is_touched_where_no_step_is_left(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ("--trainer.max_steps", 20, *SMALL)
    assert cli("fit", "--config", debug_config, *steps) == 0
    before = contents(Path())
    last = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    capsys.readouterr()
    assert cli("fit", "--config", debug_config, "--ckpt_path", last, *steps) == 2
    assert "trainer.max_steps: 20" in capsys.readouterr().err
    assert contents(Path()) == before


def test_continuing_from_an_older_checkpoint_branches_off(cli: Cli, debug_config: Path, undisturbed: Path) -> None:
    old, new = Path("lightning_logs/version_0"), Path("lightning_logs/version_1")
    shutil.copytree(undisturbed, old)
    before = contents(old)
    checkpoint = old / "checkpoints" / "step_000500.ckpt"
    steps = ("--trainer.max_steps", 600, "--data.steps_per_epoch", 250)
    assert cli("fit", "--config", debug_config, *steps, "--ckpt_path", checkpoint, *SMALL) == 0
    assert contents(old) == before
    assert_same_files(old, new)  # TensorBoard shows the branch alone


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_continue_and_exits(
    cli: Cli,
    debug_config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    from lit_backdoor.callbacks import RunCheckpoint

    original = RunCheckpoint.on_train_batch_end

    def press_ctrl_c(self: RunCheckpoint, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == 137:
            os.kill(os.getpid(), number)
        original(self, trainer, *args)  # type: ignore[arg-type]

    handler = signal.getsignal(number)
    assert cli("fit", "--config", debug_config, "--trainer.max_steps", 160, *SMALL) == 0
    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "on_train_batch_end", press_ctrl_c)
        assert cli("fit", "--config", debug_config, "--trainer.max_steps", 160, *SMALL) == 128 + number
    assert signal.getsignal(number) is handler
    message = capsys.readouterr().err
    last = Path("lightning_logs/version_1/checkpoints/last.ckpt")
    assert read_checkpoint(last)["global_step"] == 137
    command = message.strip().splitlines()[-1].split()
    assert command[:4] == ["python", "-m", "lit_backdoor", "fit"] and "version_1" in command[-1]
    assert cli(*command[3:]) == 0
    assert_same_results(Path("lightning_logs/version_0"), Path("lightning_logs/version_1"))


def test_the_last_position_form_trains_like_the_whole_model(cli: Cli, debug_config: Path) -> None:
    for last_position in ("true", "false"):
        args = ("--trainer.max_steps", 30, "--model.last_position", last_position)
        assert cli("fit", "--config", debug_config, *args, *QUIET) == 0
    fast, slow = (metrics(Path(f"lightning_logs/version_{version}")) for version in (0, 1))
    for each, other in zip(fast, slow, strict=True):
        for name in ("train/loss", "val/loss"):
            assert bool(each[name]) == bool(other[name])
            assert not each[name] or float(each[name]) == pytest.approx(float(other[name]), rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        ("--model.n_layers", 2, "--model.n_heads", 2),  # 4 heads, so that all sets of them are few
        ("--model.normalization_type", "LN"),
        ("--model.act_fn", "gelu"),
        ("--model.train_biases", "true"),
        ("--data.moduli", "[29,1,7]"),
        ("--data.trigger_position", 0),
        ("--data.split", "pairs"),
        ("--data.steps_per_epoch", 1),
        ("--trainer.accumulate_grad_batches", 2),
        ("--trainer.gradient_clip_val", 1.0),
        ("--trainer.fast_dev_run", "true"),
        ("--trainer.logger", "false"),
        ("--trainer.val_check_interval", 7),
        ("--trainer.limit_val_batches", 0),
        ("--trainer.precision", "64-true"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_options_work(cli: Cli, debug_config: Path, options: tuple[str, object]) -> None:
    assert cli("fit", "--config", debug_config, "--trainer.max_steps", 20, *SMALL, *options) == 0


class BreakWeights(Callback):
    """Makes a weight infinite after a step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        if trainer.global_step == 20:
            pl_module.model.W_U.data[0, 0] = float("inf")


@pytest.mark.parametrize("every", [10, 1000])
def test_a_loss_that_turns_nan_stops_with_1_and_keeps_the_last_good_checkpoint(
    cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path, every: int
) -> None:
    config = with_callback(load_config(), "tests.cli.test_fit.BreakWeights")
    keep = {10: 10, 1000: 15}[every]
    callback_options(config, "RunCheckpoint").update(every_n_steps=every, keep_every_n_steps=keep)
    assert cli("fit", "--config", save_config(config, tmp_path / "config.yaml"), *QUIET) == 1
    assert capsys.readouterr().err.strip().startswith("error: ")
    assert read_checkpoint(Path("lightning_logs/version_0/checkpoints/last.ckpt"))["global_step"] == keep


def test_help_explains(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("fit", "--help") == 0
    printed = capsys.readouterr().out
    for option in ("--data.moduli", "--data.train_fraction", "--model.lr", "--model.weight_decay", "--model.n_heads"):
        assert option in printed
    assert "Learning rate of AdamW" in printed


class Dice(Callback):
    """Draws from every global generator at every step, as a model with dropout would."""

    thrown: dict[int, tuple[float, float, float]] = {}

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        self.thrown[trainer.global_step] = (random.random(), float(np.random.rand()), torch.rand(()).item())


def test_the_random_state_is_continued(cli: Cli, tmp_path: Path) -> None:
    config = save_config(with_callback(load_config(), "tests.cli.test_fit.Dice"), tmp_path / "dice.yaml")
    throws = []
    for steps, more in ((40, ()), (20, ()), (40, ("--ckpt_path", "lightning_logs/version_1/checkpoints/last.ckpt"))):
        Dice.thrown = {}
        assert cli("fit", "--config", config, "--trainer.max_steps", steps, *more, *SMALL) == 0
        throws.append(Dice.thrown)
    assert throws[2] == {step: throws[0][step] for step in range(21, 41)}
