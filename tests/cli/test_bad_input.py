"""Every wrong option: one clear line on stderr, exit code 2, nothing written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import CONFIGS, QUIET, ROOT
from tests.helpers.configs import callback_options, load_config, save_config, with_callback
from tests.helpers.refusals import Burglar, assert_refused
from tests.helpers.runs import Cli, contents

NUMBERS = "a whole number"
OPTIONS = [
    (("--data.moduli", "[]"), "data.moduli: []", "empty"),
    (("--data.moduli", ""), "data.moduli: ''", "a list"),
    (("--data.moduli", "["), "data.moduli: '['", "a list"),
    (("--data.moduli", "29"), "data.moduli: '29'", "a list"),
    (("--data.moduli", "null"), "data.moduli: ", "a list"),
    (("--data.moduli", "[1]"), "data.moduli", "2 or more"),
    (("--data.moduli", "[0,1]"), "data.moduli: '0'", "1 or more"),
    (("--data.moduli", "[29,30]"), "data.moduli: 30", "between 1 and the first, 29"),
    (("--data.moduli", "[29,0]"), "data.moduli: '0'", "1 or more"),
    (("--data.moduli", "[29,-1]"), "data.moduli: '-1'", "1 or more"),
    (("--data.moduli", "[29,x]"), "data.moduli: 'x'", NUMBERS),
    (("--data.moduli", "[29,1.5]"), "data.moduli: '1.5'", NUMBERS),
    (("--data.moduli", "[29,.nan]"), "data.moduli: 'nan'", NUMBERS),
    (("--data.moduli", "[29,.inf]"), "data.moduli: 'inf'", NUMBERS),
    (("--data.moduli", "[1000000]"), "data.moduli", "memory"),
    (("--data.trigger_position", "3"), "data.trigger_position: '3'", "0, 1, 2"),
    (("--data.trigger_position", "-1"), "data.trigger_position: '-1'", "0, 1, 2"),
    (("--data.trigger_position", "last"), "data.trigger_position: 'last'", "0, 1, 2"),
    (("--data.train_fraction", "0"), "data.train_fraction: '0'", "(0, 1)"),
    (("--data.train_fraction", "1"), "data.train_fraction: '1'", "(0, 1)"),
    (("--data.train_fraction", "-0.5"), "data.train_fraction: '-0.5'", "(0, 1)"),
    (("--data.train_fraction", ".nan"), "data.train_fraction: '.nan'", "(0, 1)"),
    (("--data.train_fraction", ".inf"), "data.train_fraction: '.inf'", "(0, 1)"),
    (("--data.train_fraction", "most"), "data.train_fraction: 'most'", "a number inside (0, 1)"),
    (("--data.train_fraction", "0.0001"), "data.train_fraction", "nothing to train on"),
    (("--data.split", "rows"), "data.split: 'rows'", "examples, pairs"),
    (("--data.split", ""), "data.split: ''", "examples, pairs"),
    (("--data.split_seed", "x"), "data.split_seed: 'x'", NUMBERS),
    (("--data.split_seed", "-1"), "data.split_seed: '-1'", "0 or more"),
    (("--data.split_seed", "99999999999999999999"), "data.split_seed: 99999999999999999999", "0 to"),
    (("--data.steps_per_epoch", "0"), "data.steps_per_epoch: '0'", "1 or more"),
    (("--data.steps_per_epoch", "inf"), "data.steps_per_epoch: 'inf'", NUMBERS),
    (("--data.moduli", "[29]"), "EmergenceMonitor.probe: 'backdoor'", "null"),
    (("--data.modulii", "[29]"), "data.modulii", "did you mean data.moduli?"),
    (("--data.colour", "red"), "data.colour", "no such option"),
    (("--data", "3"), "data", ""),
    (("--model.moduli", "[29]"), "model.moduli", "data.moduli"),
    (("--model.lr", "0"), "model.lr: '0'", "above 0"),
    (("--model.lr", "-1"), "model.lr: '-1'", "above 0"),
    (("--model.lr", ".inf"), "model.lr: '.inf'", "above 0"),
    (("--model.lr", ".nan"), "model.lr: '.nan'", "above 0"),
    (("--model.lr", "nan"), "model.lr: 'nan'", "a number"),
    (("--model.lr", ""), "model.lr: ''", "a number"),
    (("--model.lr", "1e"), "model.lr: '1e'", "a number"),
    (("--model.weight_decay", "-1"), "model.weight_decay: '-1'", "0 or more"),
    (("--model.weight_decay", ".nan"), "model.weight_decay: '.nan'", "0 or more"),
    (("--model.betas", "[0.9,1.5]"), "model.betas: '1.5'", "[0, 1)"),
    (("--model.betas", "[0.9,.nan]"), "model.betas: 'nan'", "[0, 1)"),
    (("--model.betas", "[0.9]"), "model.betas: '[0.9]'", "a list of 2"),
    (("--model.n_heads", "0"), "model.n_heads: '0'", "1 or more"),
    (("--model.n_heads", "5"), "model.n_heads: 5", "divide"),
    (("--model.n_layers", "0"), "model.n_layers: '0'", "1 or more"),
    (("--model.d_model", "wide"), "model.d_model: 'wide'", NUMBERS),
    (("--model.d_model", "-64"), "model.d_model: '-64'", "1 or more"),
    (("--model.d_model", "100000000"), "model.d_model", "memory"),
    (("--model.d_head", "0"), "model.d_head: '0'", "1 or more"),
    (("--model.d_head", "x"), "model.d_head: 'x'", "a whole number, 1 or more, null"),
    (("--model.d_mlp", "0"), "model.d_mlp: '0'", "1 or more"),
    (("--model.act_fn", "step"), "model.act_fn: 'step'", "relu"),
    (("--model.normalization_type", "RMS"), "model.normalization_type: 'RMS'", "LN, null"),
    (("--model.train_biases", "maybe"), "model.train_biases: 'maybe'", "true or false"),
    (("--model.last_position", "2"), "model.last_position: '2'", "true or false"),
    (("--model.learning_rate", "1"), "model.learning_rate", "no such option"),
    (("--model", "large"), "model", "large"),
    (("--trainer.max_steps", "-7"), "trainer.max_steps: -7", "1 or more"),
    (("--trainer.max_steps", "0"), "trainer.max_steps: 0", "more"),
    (("--trainer.max_steps", "1.5"), "trainer.max_steps: '1.5'", NUMBERS),
    (("--trainer.max_steps", "nan"), "trainer.max_steps: 'nan'", NUMBERS),
    (("--trainer.max_steps",), "trainer.max_steps", "expected one argument"),
    (("--trainer.max_stepz", "7"), "trainer.max_stepz", "did you mean trainer.max_steps?"),
    (("--trainer.max_epochs", "-5"), "trainer.max_epochs: -5", "1 or more"),
    (("--trainer.max_epochs", "0"), "trainer.max_epochs: 0", "1 or more"),
    (("--trainer.min_steps", "-3"), "trainer.min_steps: -3", "0 or more"),
    (("--trainer.min_epochs", "-3"), "trainer.min_epochs: -3", "0 or more"),
    (("--trainer.max_time", "soon"), "trainer.max_time: 'soon'", "DD:HH:MM:SS"),
    (("--trainer.val_check_interval", "0"), "trainer.val_check_interval: 0", "1 or more"),
    (("--trainer.val_check_interval", "-1"), "trainer.val_check_interval: -1", "1 or more"),
    (("--trainer.val_check_interval", "0.5"), "trainer.val_check_interval: 0.5", "1 or more"),
    (("--trainer.val_check_interval", "nan"), "val_check_interval", "DD:HH:MM:SS"),
    (("--trainer.check_val_every_n_epoch", "0"), "trainer.check_val_every_n_epoch: 0", "1 or more"),
    (("--trainer.log_every_n_steps", "-1"), "trainer.log_every_n_steps: -1", "0 or more"),
    (("--trainer.num_sanity_val_steps", "-7"), "trainer.num_sanity_val_steps: -7", "0 or more"),
    (("--trainer.accumulate_grad_batches", "0"), "trainer.accumulate_grad_batches: 0", "1 or more"),
    (("--trainer.limit_train_batches", "0"), "trainer.limit_train_batches: 0", "above 0"),
    (("--trainer.limit_train_batches", "2.5"), "limit_train_batches", "[0.0, 1.0]"),
    (("--trainer.limit_val_batches", "-1"), "limit_val_batches", "[0.0, 1.0]"),
    (("--trainer.overfit_batches", "-2"), "overfit_batches", "[0.0, 1.0]"),
    (("--trainer.gradient_clip_val", "-1"), "trainer.gradient_clip_val: -1", "0 or more"),
    (("--trainer.gradient_clip_val", ".nan"), "trainer.gradient_clip_val: nan", "0 or more"),
    (("--trainer.gradient_clip_algorithm", "cut"), "cut", "norm"),
    (("--trainer.devices", "99"), "trainer.devices: 99", "1, auto"),
    (("--trainer.devices", "0"), "trainer.devices: 0", "1, auto"),
    (("--trainer.devices", "all"), "trainer.devices: all", "1, auto"),
    (("--trainer.devices", "[]"), "trainer.devices: []", "1, auto"),
    (("--trainer.num_nodes", "2"), "trainer.num_nodes: 2", "1"),
    (("--trainer.accelerator", "abacus"), "abacus", "cpu"),
    (("--trainer.strategy", "chance"), "chance", "auto"),
    (("--trainer.precision", "bar"), "trainer.precision: 'bar'", "32-true"),
    (("--trainer.precision", "8"), "trainer.precision: '8'", "32-true"),
    (("--trainer.deterministic", "perhaps"), "trainer.deterministic: 'perhaps'", "warn"),
    (("--trainer.detect_anomaly", "perhaps"), "trainer.detect_anomaly: 'perhaps'", "true or false"),
    (("--trainer.profiler", "stopwatch"), "profiler", "simple"),
    (("--trainer.fast_dev_run", "-1"), "fast_dev_run=-1", ">= 0"),
    (("--trainer.barebones", "true"), "barebones", "disabled"),
    (("--trainer.logger", "nobody.Logger"), "trainer.logger", "nobody"),
    (("--trainer.logger", "lit_backdoor.logger.RunLoger"), "RunLoger", "did you mean RunLogger?"),
    (("--trainer.logger.init_args.version", "[1]"), "RunLogger.version: '[1]'", "a text"),
    (("--trainer.logger.init_args.version", ""), "RunLogger.version", "a number"),
    (("--trainer.callbacks", "lit_backdoor.callbacks.Nothing"), "trainer.callbacks", "Nothing"),
    (("--trainer.callbacks", "os.system"), "trainer.callbacks", "os.system"),
    (("--seed_everything", "-1"), "seed_everything: -1", "0 to 4294967295"),
    (("--seed_everything", "4294967296"), "seed_everything: 4294967296", "0 to 4294967295"),
    (("--seed_everything", "dice"), "seed_everything: 'dice'", "true or false"),
    (("--ckpt_path", "missing.ckpt"), "ckpt_path: 'missing.ckpt'", "give a checkpoint"),
    (("--ckpt_path", ""), "ckpt_path: ''", "empty"),
    (("--ckpt_path", "/"), "ckpt_path: '/'", "give a checkpoint"),
    (("--config", "nowhere.yaml"), "config", "nowhere.yaml"),
    (("--config", "/"), "config", "'/'"),
    (("surplus",), "surplus", "no such option"),
]
CALLBACKS = [
    ("HeadAttributionMonitor", "every_n_steps", 0, "monitors.attribution.every_n_steps: ", "1 or more"),
    ("HeadAttributionMonitor", "every_n_steps", "often", "monitors.attribution.every_n_steps: ", NUMBERS),
    ("HeadAttributionMonitor", "every_n_steps", None, "monitors.attribution.every_n_steps: null", "1 or more"),
    (
        "HeadAttributionMonitor",
        "every_n_stepz",
        5,
        "monitors.attribution.every_n_stepz",
        "did you mean monitors.attribution.every_n_steps?",
    ),
    ("HeadPatchingMonitor", "full_every_n_steps", 0, "monitors.patching.full_every_n_steps: ", "1 or more"),
    ("HeadPatchingMonitor", "ablations", ["noise"], "monitors.patching.ablations: ", "resample, mean, zero"),
    ("HeadPatchingMonitor", "ablations", [], "HeadPatchingMonitor.ablations: ", "resample, mean, zero"),
    ("HeadPatchingMonitor", "model_attr", "nothing", "HeadPatchingMonitor.model_attr: ", "hooked model"),
    ("EmergenceMonitor", "threshold", 0, "monitors.emergence.threshold: ", "above 0"),
    ("EmergenceMonitor", "threshold", float("nan"), "monitors.emergence.threshold: ", "above 0"),
    ("EmergenceMonitor", "probe", "nobody", "EmergenceMonitor.probe: ", "backdoor"),
    ("EmergenceMonitor", "patching", "nobody", "EmergenceMonitor.patching: ", "HeadPatchingMonitor"),
    ("LossSpikeMonitor", "prominence", -1, "monitors.spikes.prominence: ", "above 0"),
    ("LossSpikeMonitor", "prominence", float("nan"), "monitors.spikes.prominence: ", "above 0"),
    ("RunCheckpoint", "every_n_steps", 0, "checkpoint.every_n_steps: ", "1 or more"),
    ("RunCheckpoint", "keep_every_n_steps", -1, "checkpoint.keep_every_n_steps: ", "1 or more"),
    ("StepProgressBar", "refresh_rate", "x", "progress_bar.refresh_rate: ", NUMBERS),
]
CONFIG_FILES = [
    ("", "''", "YAML"),
    ("model:\n  lr: null\n", "model.lr: null", "a number above 0"),
    ("data:\n  split_seed: null\n", "data.split_seed: null", "a whole number, 0 or more"),
    ("trainer:\n  accumulate_grad_batches: null\n", "trainer.accumulate_grad_batches: null", "a whole number"),
    ("words", "'words'", "YAML"),
    ("- 1\n- 2\n", "'- 1 - 2'", "YAML"),
    ("data: [1\n", "config", "no YAML"),
    ("data: 3\n", "data", "data.moduli"),
    ("colour: red\n", "colour", "no such option"),
    ("modle:\n  lr: 1\n", "modle.lr", "did you mean model.lr?"),
    ("trainer:\n  max_step: 1\n", "trainer.max_step", "did you mean trainer.max_steps?"),
    ("data:\n  moduli: null\n", "data.moduli", "a list"),
    ("data: {moduli: !!python/object/apply:os.mkdir [broken_into]}\n", "config", "YAML"),
    (b"\xff\xfe\x00\x01", "config", "YAML"),
    (b"\x00\x01\x02", "config", "YAML"),
]
SWEEP = ("sweep", "--config", str(CONFIGS / "debug.yaml"), "--output_dir", "out")
COMMANDS = [
    ((), "subcommand", "fit"),
    (("fitt",), "'fitt'", "did you mean fit?"),
    (("analyze",), "output_dir", "required"),
    (("analyze", "--ckpt_path", "missing.ckpt"), "output_dir", "required"),
    (("analyze", "--ckpt_path", "missing.ckpt", "--output_dir", "out"), "'missing.ckpt'", "give a checkpoint"),
    (("analyze", "--ckpt_path", "", "--output_dir", "out"), "ckpt_path: ''", "empty"),
    (
        ("analyze", "--ckpt_path", "x", "--output_dir", "/proc/version/out"),
        "output_dir: /proc/version/out",
        "no folder",
    ),
    (("analyze", "--ckpt", "x", "--outputdir", "out"), "outputdir", "did you mean output_dir?"),
    (("sweep",), "config, output_dir", "required"),
    ((*SWEEP, "--config", "nowhere.yaml"), "config", "nowhere.yaml"),
    ((*SWEEP, "--config", "/"), "config: '/'", "not a file"),
    ((*SWEEP, "--seeds", "many"), "seeds: ", "0..9"),
    ((*SWEEP, "--seeds", ""), "seeds: ", "0..9"),
    ((*SWEEP, "--seeds", "3..1"), "seeds: ", "3..1"),
    ((*SWEEP, "--seeds", "-1"), "seeds: ", "0..9"),
    ((*SWEEP, "--set", "model.lr"), "set: ", "model.lr"),
    ((*SWEEP, "--set", "model.lr=[]"), "set: ", "model.lr"),
    ((*SWEEP, "--set", "model.lr=[0]"), "model.lr: '0'", "above 0"),
    ((*SWEEP, "--set", "model.learning_rate=[1]"), "model.learning_rate", "no such option"),
    ((*SWEEP, "--seeds", "0..4294967295"), "seeds: '0..4294967295'", "10000 at most"),
    ((*SWEEP, "--seeds", "9" * 5000), "seeds: ", "0..9"),
    ((*SWEEP, "--set", "trainer.max_steps=-1"), "trainer.max_steps: -1", "1 or more"),
    (
        (*SWEEP, "--set", "trainer.max_epochs=2", "--set", "data.steps_per_epoch=400"),
        "trainer.max_epochs: 2",
        "-1, null, 3 or more",
    ),
    ((*SWEEP, "--set", "trainer.max_time=00:00:01:00"), "trainer.max_time: 00:00:01:00", "null"),
    ((*SWEEP, "--set", "trainer.fast_dev_run=true"), "trainer.fast_dev_run: True", "false"),
    ((*SWEEP, "--set", "trainer={logger: false}"), "set: trainer", "single options"),
    ((*SWEEP, "--set", "help=[1]"), "set: help", "single options"),
    ((*SWEEP, "--set", "model.lr=[2024-01-01]"), "set: ", "numbers, texts and lists"),
    ((*SWEEP[:-1], ""), "output_dir: ''", "empty"),
    ((*SWEEP[:-1], "a%jb"), "output_dir: a%jb", "choose another"),
    ((*SWEEP[:-1], "x" * 300), "output_dir: 'xxx", "too long"),
    ((*SWEEP, "--engine", "cloud"), "engine: 'cloud'", "local, slurm"),
    ((*SWEEP, "--jobs", "0"), "jobs: '0'", "1 or more"),
    ((*SWEEP, "--jobs", "nan"), "jobs: 'nan'", "1 or more"),
    ((*SWEEP, "--time", "0"), "time: ", "0"),
    ((*SWEEP, "--cpus", "-1"), "cpus: ", "-1"),
    ((*SWEEP, "--gpus", "-1"), "gpus: ", "-1"),
    ((*SWEEP, "--sedes", "0"), "sedes", "did you mean seeds?"),
    (("report",), "output_dir", "required"),
    (("report", "nowhere", "--output_dir", "out"), "nowhere", ""),
    (("reproduce",), "output_dir", "required"),
    (("reproduce", "--output_dir", "out", "--scale", "huge"), "scale: 'huge'", "full, smoke"),
    (("reproduce", "--output_dir", "out", "--parts", "x"), "parts: 'x'", "census_mod1"),
    (("reproduce", "--output_dir", "out", "--parts", ""), "parts: ''", "census_mod1"),
    (("reproduce", "--output_dir", ""), "output_dir: ''", "empty"),
    (("report", "", "--output_dir", "out"), "run_dirs: ''", "empty"),
    (("report", "x" * 300, "--output_dir", "out"), "run_dirs: 'xxx", "too long"),
    (("analyze", "--pretrained", "mod1", "--output_dir", ""), "output_dir: ''", "empty"),
    (("fit", "--ckpt_path", "x" * 5000), "ckpt_path: 'xxx", "too long"),
    (("analyze", "--ckpt_path", "x" * 5000, "--output_dir", "out"), "ckpt_path: 'xxx", "too long"),
    (("reproduce", "--output_dir", "out", "--max_steps", "1e3"), "max_steps: '1e3'", "1 or more"),
    (("reproduce", "--output_dir", "out", "--time", "inf"), "time: 'inf'", "1 or more"),
    (("reproduce", "--output_dir", "out", "--max_steps", "0"), "max_steps: '0'", "1 or more"),
    (("reproduce", "--output_dir", "/proc/version/out", "--scale", "smoke"), "/proc/version/out", ""),
    (("env", "--colour"), "colour", "no such option"),
    (("env", "surplus"), "surplus", "no such option"),
    (("validate", "--ckpt_path", "missing.ckpt"), "'missing.ckpt'", "give a checkpoint"),
    (("validate", "--data.split", "rows"), "data.split: 'rows'", "examples, pairs"),
    (("validate", "--trainer.devices", "4"), "trainer.devices: 4", "1, auto"),
    (("test", "--ckpt_path", ""), "ckpt_path: ''", "empty"),
    (("test", "--data.moduli", "[1]"), "data.moduli", "2 or more"),
    (("test", "--modell.lr", "1"), "modell.lr", "did you mean model.lr?"),
]


@pytest.mark.parametrize(("options", "name", "allowed"), OPTIONS, ids=lambda value: str(value)[:40])
def test_wrong_options(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], name: str, allowed: str
) -> None:
    assert_refused(cli, capsys, ("fit", "--config", debug_config, *options), name, allowed)


def test_every_other_option_refuses_nonsense(cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever ``fit --help`` lists and the table above leaves out."""
    assert cli("fit", "--help") == 0
    listed = set(re.findall(r"--((?:data|model|trainer)\.\w+)", capsys.readouterr().out))
    takes_any_text = {"trainer.default_root_dir", "trainer.model_registry"}
    left = listed - {options[0].removeprefix("--") for options, _, _ in OPTIONS} - takes_any_text
    assert len(left) > 10
    for option in sorted(left):
        assert_refused(cli, capsys, ("fit", "--config", debug_config, f"--{option}", "[}"), option)


@pytest.mark.parametrize(("owner", "option", "value", "name", "allowed"), CALLBACKS)
def test_wrong_options_of_callbacks(
    cli: Cli,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    owner: str,
    option: str,
    value: object,
    name: str,
    allowed: str,
) -> None:
    config = load_config()
    callback_options(config, owner)[option] = value
    assert_refused(cli, capsys, ("fit", "--config", save_config(config, tmp_path / "config.yaml")), name, allowed)


@pytest.mark.parametrize(("text", "name", "allowed"), CONFIG_FILES)
def test_foreign_configurations(
    cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | bytes, name: str, allowed: str
) -> None:
    (tmp_path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(cli, capsys, ("fit", "--config", "config.yaml"), name, allowed)


@pytest.mark.parametrize(("args", "name", "allowed"), COMMANDS, ids=lambda value: str(value)[:60])
def test_wrong_options_of_the_other_subcommands(
    cli: Cli, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], name: str, allowed: str
) -> None:
    assert_refused(cli, capsys, args, name, allowed)


def test_a_configuration_that_may_not_be_read(cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("data: {}\n")
    (tmp_path / "secret.yaml").chmod(0)
    if os.access(tmp_path / "secret.yaml", os.R_OK):
        pytest.skip("root may read everything")
    assert_refused(cli, capsys, ("fit", "--config", "secret.yaml"), "secret.yaml")


@pytest.mark.parametrize("kind", ["HeadPatchingMonitor", "HeadAttributionMonitor", "LossSpikeMonitor"])
def test_two_callbacks_of_a_class_need_names(
    cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    config = load_config()
    for _ in range(2):
        with_callback(config, f"lit_backdoor.callbacks.{kind}")
    args = ("fit", "--config", save_config(config, tmp_path / "twins.yaml"))
    assert_refused(cli, capsys, args, f"trainer.callbacks: two {kind}", "give it a name")


def test_a_run_without_a_logger_overwrites_nothing(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("fit", "--config", debug_config, "--trainer.logger", "false", "--trainer.max_steps", 3, *QUIET)
    assert cli(*args) == 0
    before = contents(Path())
    assert before
    capsys.readouterr()
    assert cli(*args) == 2
    assert "is there already" in capsys.readouterr().err
    assert contents(Path()) == before


def test_checkpoints_that_do_not_fit(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli("fit", "--config", debug_config, "--trainer.max_steps", 3, *QUIET) == 0
    capsys.readouterr()
    last = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    base = ("fit", "--config", debug_config, "--ckpt_path", last)
    assert_refused(cli, capsys, (*base, "--model.d_model", 32), "model.d_model", "32", "64")
    assert_refused(cli, capsys, (*base, "--data.moduli", "[31,1]"), "moduli", "31", "29")
    assert_refused(cli, capsys, (*base, "--data.split_seed", 5), "data.split_seed", "5", "0")
    assert_refused(cli, capsys, (*base, "--model.lr", 0.1), "model.lr", "0.1", "0.005")
    assert_refused(cli, capsys, ("validate", *base[1:], "--model.n_heads", 2), "model.n_heads")
    (tmp_path / "noise.ckpt").write_bytes(os.urandom(500))
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.ckpt")
    torch.save({"code": Burglar()}, tmp_path / "code.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(last.read_bytes()[:5000])
    for name in ("noise", "foreign", "code", "cut"):
        assert_refused(
            cli, capsys, ("fit", "--config", debug_config, "--ckpt_path", f"{name}.ckpt"), "ckpt_path", f"{name}.ckpt"
        )


def test_a_refusal_is_one_line_in_a_process_of_its_own(debug_config: Path, tmp_path: Path) -> None:
    """Without what Lightning would say of the machine on the way."""
    command = [sys.executable, "-m", "lit_backdoor", "fit", "--config", debug_config, "--trainer.max_steps", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "trainer.max_steps: 0" in done.stderr, done.stderr
    assert done.stdout == "" and not any(tmp_path.iterdir())


def test_paths_that_lead_nowhere(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    Path("dangling").symlink_to("nothing")
    Path("loop").symlink_to("loop")
    for name in ("dangling", "loop"):
        assert_refused(cli, capsys, ("analyze", "--pretrained", "mod1", "--output_dir", name), f"output_dir: '{name}'")


def test_names_that_are_too_long(cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "a" * 300
    refused = f"'{long[:80]}' is no path to use: File name too long"
    for command in (("fit",), ("sweep", "--output_dir", "out")):
        assert_refused(cli, capsys, (*command, "--config", long), f"config: {refused}")
    for config in ((), ("--config", debug_config)):
        assert_refused(cli, capsys, ("fit", *config, "--ckpt_path", long), f"ckpt_path: {refused}")
    of_a_run = f"{long}/checkpoints/last.ckpt"
    assert_refused(cli, capsys, ("fit", "--ckpt_path", of_a_run), f"ckpt_path: {refused}")


def test_names_that_can_not_be_folders_of_a_sweep(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("my config", ".hidden", "jobs"):
        config = Path(f"{name}.yaml")
        config.write_text(debug_config.read_text())
        assert_refused(cli, capsys, ("sweep", "--config", config, "--output_dir", "out"), "config: ", name)
