"""The command line as people type it: every case was typed by somebody."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.loggers import Logger

from lit_backdoor.cli.checked_cli import CheckedCLI, checked_fit_options
from lit_backdoor.cli.main import main
from lit_backdoor.cli.named_callbacks import NAMED_CALLBACKS
from lit_backdoor.runs.checkpoints import read_checkpoint
from tests.helpers import QUIET, ROOT
from tests.helpers.configs import load_config, save_config, with_callback
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli, assert_same_weights, contents, metrics, read_rows

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
SMALL = ("--data.moduli", "[11,1]", "--model.d_model", 16, "--model.d_mlp", 8, *QUIET)
STEPS = "--trainer.max_steps"


def stored(run: Path = RUN, name: str = "config.yaml") -> dict[str, Any]:
    """The configuration that a run stored."""
    config: dict[str, Any] = yaml.safe_load((run / name).read_text())
    return config


def patched_steps(run: Path = RUN) -> list[int]:
    """The steps at which heads were patched."""
    return sorted({int(row["step"]) for row in read_rows(run / "head_patching.csv")})


# The default, and configurations that say what differs


def complete_values(name: str) -> dict[str, Any]:
    """The complete options of a shipped configuration: callbacks by class, all else by option."""
    options = checked_fit_options(["fit", "--config", name])
    values = {key: value for key, value in options.items() if not key.startswith("trainer.callbacks")}
    for group, kind in NAMED_CALLBACKS.items():
        values |= {f"callbacks.{kind.__name__}.{key}": value for key, value in (options[group] or {}).items()}
    for callback in options.trainer.callbacks or []:
        kind = f"{callback.class_path.rpartition('.')[2]}[{callback.init_args.name}]"
        values |= {f"callbacks.{kind}.{key}": value for key, value in callback.init_args.items()}
    return values


SHIPPED = json.loads((Path(__file__).parent / "shipped_options.json").read_text())


@pytest.mark.parametrize("name", SHIPPED)
def test_short_configurations_have_the_values_of_the_long_ones(cli: Cli, name: str) -> None:
    """The file holds what version 0.1 spelled out in every configuration: all of mod 1, and what differs from it.

    Except how often heads are patched: half as often, since the first 400 steps are now measured closely.
    """
    values = json.loads(json.dumps(complete_values(name), default=str))
    expected = SHIPPED["mod1"] | SHIPPED[name]
    assert {key: values.get(key, "missing") for key in expected} == expected


def test_no_configuration_is_needed(cli: Cli) -> None:
    assert cli("fit", "--data.moduli", "[13,7]", STEPS, 2, *QUIET) == 0
    config = stored()
    assert config["data"]["moduli"] == [13, 7] and config["data"]["train_fraction"] == 0.3
    assert config["monitors"]["patching"]["every_n_steps"] == 400 and config["trainer"]["callbacks"] is None


def test_a_shipped_configuration_is_found_by_name(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("fit", "--config=debug", STEPS, 1, *QUIET) == 0
    assert stored()["data"]["moduli"] == [29, 1]
    for command in (("fit",), ("sweep", "--output_dir", "out")):
        assert_refused(
            cli, capsys, (*command, "--config", "debugg"), "config: 'debugg'", "did you mean debug?", "mod37"
        )


def test_a_file_goes_before_a_shipped_name(cli: Cli) -> None:
    Path("debug").write_text("data: {moduli: [7, 1]}\n")
    assert cli("fit", "--config", "debug", STEPS, 1, *QUIET) == 0
    assert stored()["data"]["moduli"] == [7, 1]


# Callbacks by name


def test_options_of_a_monitor_are_set_by_its_name(cli: Cli) -> None:
    assert cli("fit", "--config", "debug", "--monitors.patching.every_n_steps", 3, STEPS, 7, *SMALL) == 0
    assert patched_steps() == [0, 3, 6, 7]
    assert {row["step"] for row in read_rows(RUN / "head_attribution.csv")} == {"0", "7"}


@pytest.mark.parametrize("option", ["--trainer.callbacks.every_n_steps", "--trainer.callbacks.init_args.every_n_steps"])
@pytest.mark.parametrize("equals", [True, False])
def test_an_option_of_the_list_is_refused(
    cli: Cli, capsys: pytest.CaptureFixture[str], option: str, equals: bool
) -> None:
    config = save_config(with_callback(load_config(), "lit_backdoor.callbacks.RunCheckpoint"), Path("list.yaml"))
    given = (f"{option}=50",) if equals else (option, "50")
    words = (option.removeprefix("--"), "--monitors.patching.every_n_steps", "--checkpoint.every_n_steps")
    assert_refused(cli, capsys, ("fit", "--config", config, *given), *words)


def test_the_option_of_a_callback_that_was_just_added_is_its_own(cli: Cli) -> None:
    added = ("--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks.logging_interval=step")
    assert cli("fit", "--config", "debug", *added, STEPS, 1, *SMALL) == 0
    (entry,) = stored()["trainer"]["callbacks"]
    assert entry["init_args"]["logging_interval"] == "step"


def test_a_sweep_refuses_an_option_of_the_list_too(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("sweep", "--config", "debug", "--output_dir", "out", "--set", "trainer.callbacks.every_n_steps=[5]")
    assert_refused(cli, capsys, args, "trainer.callbacks.every_n_steps", "--monitors.patching.every_n_steps")


def test_without_its_progress_bar_a_run_has_none(cli: Cli) -> None:
    """Lightning brings its own unless told not to."""
    assert CheckedCLI(["fit", "--config", "debug"]).trainer.progress_bar_callback is not None
    assert CheckedCLI(["fit", "--config", "debug", "--progress_bar", "null"]).trainer.progress_bar_callback is None


@pytest.mark.parametrize("left_out", [("--monitors.spikes", "null"), ("--monitors.spikes=null",), "file"])
def test_a_monitor_is_left_out(cli: Cli, left_out: Any) -> None:
    if left_out == "file":
        Path("no_spikes.yaml").write_text("monitors: {spikes: null}\n")
        left_out = ("--config", "no_spikes.yaml")
    assert cli("fit", "--config", "debug", *left_out, STEPS, 2, *SMALL) == 0
    assert not (RUN / "loss_spikes.csv").exists() and (RUN / "head_patching.csv").exists()
    assert stored()["monitors"]["spikes"] is None


OLD = """
trainer:
  callbacks:
  - class_path: lit_backdoor.callbacks.StepProgressBar
  - class_path: lit_backdoor.callbacks.HeadAttributionMonitor
    init_args: {every_n_steps: 2}
  - class_path: lit_backdoor.callbacks.HeadPatchingMonitor
    init_args: {every_n_steps: 2, full_every_n_steps: 100}
  - class_path: lit_backdoor.callbacks.EmergenceMonitor
    init_args: {probe: backdoor, threshold: 0.5, min_accuracy: 0.5, grokked: 0.99}
  - class_path: lit_backdoor.callbacks.LossSpikeMonitor
    init_args: {rise: 1.0, window: 1000}
  - class_path: lit_backdoor.callbacks.RunCheckpoint
    init_args: {every_n_steps: 3, keep_every_n_steps: null}
"""


def test_a_configuration_with_all_callbacks_in_a_list_runs_as_it_did(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("old.yaml").write_text(OLD)
    assert cli("fit", "--config", "old.yaml", STEPS, 4, *SMALL) == 0
    assert "takes the place" not in (error := capsys.readouterr().err)
    assert "old.yaml: EmergenceMonitor.grokked, LossSpikeMonitor.rise, LossSpikeMonitor.window" in error
    assert patched_steps() == [0, 2, 4]
    names = [(row["step"], row["probe"], row["heads"]) for row in read_rows(RUN / "head_patching.csv")]
    assert len(names) == len(set(names))  # nothing is measured twice
    # what it stored is read as before, too
    assert cli("fit", "--config", RUN / "config.yaml", STEPS, 4) == 0
    again = Path("lightning_logs/version_1")
    assert (again / "head_patching.csv").read_bytes() == (RUN / "head_patching.csv").read_bytes()


def test_a_listed_monitor_takes_the_place_of_the_named_one_unless_it_has_a_name(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "lit_backdoor.callbacks.HeadPatchingMonitor"
    config = save_config(with_callback(load_config(), kind, every_n_steps=1), Path("unnamed.yaml"))
    assert cli("fit", "--config", config, STEPS, 2, *SMALL) == 0
    assert "monitors.patching (HeadPatchingMonitor)" in (error := capsys.readouterr().err) and "name" in error
    assert patched_steps() == [0, 1, 2]
    config = save_config(with_callback(load_config(), kind, every_n_steps=1, name="often"), Path("named.yaml"))
    assert cli("fit", "--config", config, STEPS, 2, *SMALL) == 0
    assert "note:" not in capsys.readouterr().err
    run = Path("lightning_logs/version_1")
    assert patched_steps(run) == [0, 2]
    assert {row["step"] for row in read_rows(run / "head_patching_often.csv")} == {"0", "1", "2"}


# What a wrong option costs

REFUSALS = [
    ("fit", "--config", "debugg"),
    ("fit", "--config", "debug", "--data.modulii", "[29]"),
    ("fit", "--config", "debug", "--model.lr", "0"),
    ("fit", "--config", "debug", "--data.moduli", "[29,30]"),
    ("fit", "--config", "debug", "--data.moduli", "[29]"),
    ("fit", "--config", "debug", "--data.train_fraction", "0.0001"),
    ("fit", "--config", "debug", "--trainer.profiler", "stopwatch"),
    ("fit", "--config", "debug", "--trainer.devices", "2"),
    ("fit", "--config", "debug", "--trainer.logger.version", ""),
    ("fit", "--config", "debug", "--monitors.patching.every_n_steps", "0"),
    ("fit", "--config", "debug", "--monitors.patching.name", "../up"),
    ("fit", "--config", "debug", "--monitors.emergence.probe", "nobody"),
    ("fit", "--config", "debug", "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"),
    ("fit", "--ckpt_path", "nowhere.ckpt"),
    ("validate", "--config", "debug", "--data.split", "rows"),
    ("sweep", "--config", "debug", "--output_dir", "out", "--trainer.max_steps", "200"),
    ("sweep", "--config", "debug", "--output_dir", "out", "--set", "data.moduli=[[29,30]]"),
    ("analyze", "--ckpt_path", "nowhere.ckpt", "--output_dir", "out"),
]


def test_help_env_and_refusals_import_no_transformer_lens(tmp_path: Path) -> None:
    """Which takes as long again as Lightning; all in one process, of which nothing may need the model."""
    commands = [*REFUSALS, *((name, "--help") for name in ("fit", "analyze", "sweep", "report")), ("env",)]
    code = f"""
import sys
from lit_backdoor.cli.main import main
for args in {commands!r}:
    code = main(args)
    assert code == (0 if args[-1] in ("--help", "env") else 2), (args, code)
    assert "transformer_lens" not in sys.modules, args
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(REFUSALS) == done.stderr.count("\n"), done.stderr
    assert not any(tmp_path.iterdir())


def test_main_returns_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for args, code in ((["fit", "--help"], 0), (["--help"], 0), (["env"], 0), (["fit", "--nothing"], 2), (["fitt"], 2)):
        assert main(args) == code


def test_usage_says_what_it_is(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ((), ("fit",), ("analyze",), ("sweep",)):
        assert cli(*command, "--help") == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert printed.startswith(" ".join(["usage: lit-backdoor", *command[:1]])) or command == ("fit",), printed[:80]
        assert "usage: lit-backdoor" in printed
        assert "__main__" not in printed and "Lightning Trainer command line tool" not in printed


def test_help_shows_limits(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("fit", "--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--data.train_fraction TRAIN_FRACTION" in printed and "(type: OpenUnitInterval, default: 0.3)" in printed
    for words in ("--monitors.patching.every_n_steps", "--checkpoint.every_n_steps", "--optimizer", "PositiveInt"):
        assert words in printed


def test_an_option_of_fit_given_to_a_sweep(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("sweep", "--config", "debug", "--output_dir", "out", "--trainer.max_steps", "200")
    assert_refused(cli, capsys, args, "trainer.max_steps", "--set trainer.max_steps=[VALUE,...]")


# Continuing


def test_continuing_takes_the_runs_own_configuration(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("fit", "--config", "debug", "--model.lr", 2e-3, STEPS, 4, *SMALL) == 0
    before = contents(RUN)
    capsys.readouterr()
    assert_refused(cli, capsys, ("fit", "--ckpt_path", LAST), "trainer.max_steps: 4")
    assert contents(RUN) == before
    assert cli("fit", "--ckpt_path", LAST, STEPS, 8) == 0
    assert cli("fit", f"--ckpt_path={LAST}", f"{STEPS}=9") == 0  # the latest of its configurations
    assert stored(name="config_from_step_8.yaml")["model"]["lr"] == 2e-3
    assert cli("validate", "--ckpt_path", LAST, *QUIET) == 0
    assert cli("fit", "--config", "debug", "--model.lr", 2e-3, STEPS, 9, *SMALL) == 0
    assert_same_weights(LAST, Path("lightning_logs/version_1/checkpoints/last.ckpt"))


def test_a_configuration_alone_continues_no_run(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was continued stores its checkpoint; who takes its options for a run of their own means none."""
    assert cli("fit", "--config", "debug", STEPS, 2, *SMALL) == 0
    assert cli("fit", "--ckpt_path", LAST, STEPS, 4, *QUIET) == 0
    kept = RUN / "config_from_step_2.yaml"
    assert stored(name=kept.name)["ckpt_path"] == str(LAST)
    before = contents(RUN)
    capsys.readouterr()
    for command in (("fit", STEPS, 9), ("validate",), ("sweep", "--output_dir", "out")):
        assert_refused(cli, capsys, (*command, "--config", kept), f"ckpt_path: {LAST} stands in a configuration")
    assert contents(RUN) == before


def test_another_seed_than_the_runs_is_said_and_not_stored(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    kept = ("--checkpoint.keep_every_n_steps", 2)
    assert cli("fit", "--config", "debug", "--seed_everything", 3, STEPS, 4, *kept, *SMALL) == 0
    capsys.readouterr()
    assert cli("fit", "--ckpt_path", RUN / "checkpoints" / "step_000002.ckpt", "--seed_everything", 5) == 0
    assert "note: seed_everything: 5 is not used" in (error := capsys.readouterr().err) and "seed 3" in error
    branch = Path("lightning_logs/version_1")
    assert stored(branch, "hparams.yaml")["seed_everything"] == 3
    assert stored(branch, "config_from_step_2.yaml")["seed_everything"] == 3
    assert_same_weights(LAST, branch / "checkpoints" / "last.ckpt")
    assert cli("fit", "--ckpt_path", branch / "checkpoints" / "last.ckpt", STEPS, 5) == 0
    assert "seed_everything" not in capsys.readouterr().err


# Another optimizer

SGD = ("--optimizer", "SGD", "--optimizer.lr", 0.1, "--optimizer.momentum", 0.9)
COSINE = ("--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", 20)


def test_another_optimizer_and_schedule_train_and_continue(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("fit", "--config", "debug", *SGD, *COSINE, STEPS, 20, *SMALL) == 0
    assert cli("fit", "--config", "debug", *SGD, *COSINE, STEPS, 10, *SMALL) == 0
    last = Path("lightning_logs/version_1/checkpoints/last.ckpt")
    assert cli("fit", "--ckpt_path", last, STEPS, 20) == 0
    assert_same_weights(LAST, last)
    (state,) = read_checkpoint(last)["optimizer_states"]
    assert state["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-12)  # half a period of 20 optimizer steps
    assert stored(name="hparams.yaml")["optimizer"]["class_path"] == "torch.optim.SGD"
    capsys.readouterr()
    own = ("fit", "--config", "debug", *SMALL, STEPS, 30, "--ckpt_path", last)
    assert_refused(cli, capsys, own, "optimizer: the default", "SGD (lr 0.1, momentum 0.9)")
    assert_refused(cli, capsys, (*own, *SGD), "lr_scheduler: the default", "CosineAnnealingLR (T_max 20")
    assert_refused(
        cli, capsys, ("fit", "--ckpt_path", last, STEPS, 30, "--optimizer.lr", 0.2), "optimizer: SGD (lr 0.2"
    )
    for command in ("validate", "test"):
        assert cli(command, "--ckpt_path", last, *QUIET) == 0


@pytest.mark.parametrize("optimizer", ["Adam", "Adafactor", "RMSprop"])
def test_other_optimizers_continue(cli: Cli, optimizer: str) -> None:
    given = ("--optimizer", optimizer, "--optimizer.lr", 1e-3)
    assert cli("fit", "--config", "debug", *given, STEPS, 2, *SMALL) == 0
    assert cli("fit", "--ckpt_path", LAST, STEPS, 3) == 0


def test_a_schedule_that_waits_for_a_metric(cli: Cli) -> None:
    plateau = ("--lr_scheduler", "ReduceLROnPlateau", "--lr_scheduler.monitor", "train/loss")
    assert cli("fit", "--config", "debug", *SGD, *plateau, STEPS, 3, *SMALL) == 0


def test_without_them_it_is_the_papers_adamw(cli: Cli) -> None:
    assert cli("fit", "--config", "debug", STEPS, 1, *SMALL) == 0
    (group,) = read_checkpoint(LAST)["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["weight_decay"], tuple(group["betas"])) == (5e-3, 1.0, (0.9, 0.98))
    assert "optimizer" not in stored(name="hparams.yaml")


def test_a_state_of_another_optimizer_is_refused(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("fit", "--config", "debug", *SGD, STEPS, 2, *SMALL) == 0
    forged = read_checkpoint(LAST)
    del forged["hyper_parameters"]["optimizer"]
    torch.save(forged, "forged.ckpt")
    args = ("fit", "--config", "debug", *SMALL, STEPS, 5, "--ckpt_path", "forged.ckpt")
    assert_refused(cli, capsys, args, "training state", "is no option of AdamW")


# Loggers


class Notebook(Logger):
    """A logger that makes no directory for a run, as WandbLogger."""

    lines: list[int] = []

    @property
    def name(self) -> str:
        return "notebook"

    @property
    def version(self) -> int:
        return 0

    @property
    def save_dir(self) -> str:
        return "."

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append(step or 0)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.fixture
def notebook() -> Iterator[list[int]]:
    Notebook.lines.clear()
    yield Notebook.lines


def test_a_logger_without_a_directory_gets_ours_beside_it(cli: Cli, notebook: list[int]) -> None:
    args = ("fit", "--config", "debug", "--trainer.logger", "tests.cli.test_as_typed.Notebook", STEPS, 2, *SMALL)
    assert cli(*args) == 0
    assert cli(*args, "--trainer.default_root_dir", "elsewhere") == 0
    assert sorted(os.listdir()) == ["elsewhere", "lightning_logs"]
    assert set(notebook) == {0, 2}
    for run in (RUN, "elsewhere" / RUN):
        assert {"metrics.csv", "config.yaml", "checkpoints", "head_patching.csv"} <= set(os.listdir(run))
    assert cli("fit", "--ckpt_path", LAST, STEPS, 3) == 0
    assert [row["step"] for row in metrics(RUN)] == ["0", "3"]


def test_wandb_alone(cli: Cli, wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    args = ("fit", "--config", "debug", "--trainer.logger", "WandbLogger", STEPS, 1, *SMALL)
    for _ in range(2):
        assert cli(*args) == 0
        wandb.finish()
    assert sorted(os.listdir("lightning_logs")) == ["version_0", "version_1"]
    assert not {"metrics.csv", "config.yaml", "checkpoints"} & set(os.listdir())


def test_csv_logger_alone(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    logger = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", ".")
    assert cli("fit", "--config", "debug", *logger, STEPS, 2, *SMALL) == 0
    printed = capsys.readouterr().out
    assert "nan" not in printed and "tensorboard" not in printed
    (loss,) = (line.split() for line in printed.splitlines() if line.startswith("loss "))
    assert len(loss) == 3 and all(0 < float(value) < 10 for value in loss[1:])


def readme_commands() -> list[list[str]]:
    """The commands of fit in README's table."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if "`lit-backdoor fit" in line]
    commands = [shlex.split(row.split("`lit-backdoor ")[1].split("`")[0]) for row in rows]
    return [command for command in commands if "--help" not in command and "--ckpt_path" not in command]


@pytest.mark.parametrize("command", readme_commands(), ids=" ".join)
def test_the_readmes_commands_are_whole(cli: Cli, command: list[str]) -> None:
    options = checked_fit_options(command)
    assert options.trainer.max_steps >= 1000
