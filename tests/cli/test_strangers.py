"""Checkpoints and configurations from strangers: nothing in them is run, what is wrong is named, nothing is written."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.helpers import CONFIGS, QUIET
from tests.helpers.configs import callback_options, load_config, save_config, with_callback
from tests.helpers.refusals import Burglar, assert_refused
from tests.helpers.runs import Cli, train_run

COMMANDS = {
    "fit": ("fit", "--config", CONFIGS / "debug.yaml", *QUIET),
    "validate": ("validate", "--config", CONFIGS / "debug.yaml", *QUIET),
    "test": ("test", "--config", CONFIGS / "debug.yaml", *QUIET),
    "analyze": ("analyze", "--output_dir", "out"),
}
W_IN = "model.blocks.0.mlp.W_in"
Damage = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A good one."""
    run = train_run(tmp_path_factory.mktemp("good") / "runs" / "short", "--trainer.max_steps=3")
    good: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return good


def weight(value: Callable[[torch.Tensor], object], name: str = W_IN) -> Damage:
    def damage(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"][name] = value(checkpoint["state_dict"][name].clone())

    return damage


def setting(name: str, value: object) -> Damage:
    return lambda checkpoint: checkpoint["hyper_parameters"].update({name: value})


IN_ALL = {
    "NaN": (weight(lambda w: w.fill_(float("nan"))), "W_in", "not finite"),
    "infinity": (weight(lambda w: w.index_fill_(0, torch.tensor([3]), float("inf"))), "W_in", "not finite"),
    "whole numbers": (weight(lambda w: w.long()), "W_in", "not finite numbers"),
    "another shape": (weight(lambda w: w.T.contiguous()), "W_in", "[128, 64] instead of [64, 128]"),
    "no tensor": (weight(lambda w: "weights"), "W_in", "str instead of"),
    "missing": (lambda c: c["state_dict"].pop(W_IN), "lacks the weight", "W_in"),
    "foreign": (lambda c: c["state_dict"].update({"model.spy": torch.zeros(1)}), "spy", "no weight"),
    "a mask that hides nothing": (weight(torch.zeros_like, "model.blocks.0.attn.IGNORE"), "IGNORE", "another"),
    "no weights": (lambda c: c.pop("state_dict"), "lacks state_dict"),
    "weights in a list": (lambda c: c.update(state_dict=[1]), "state_dict", "list"),
    "no options": (lambda c: c.pop("hyper_parameters"), "lacks hyper_parameters"),
    "a step below 0": (lambda c: c.update(global_step=-1), "step -1"),
    "a step in words": (lambda c: c.update(global_step="three"), "step 'three'"),
    "other sizes": (setting("n_heads", 2), ""),
    "endless layers": (setting("n_layers", 10**9), ""),
    "endless width": (setting("d_mlp", 10**12), ""),
    "another task": (setting("moduli", [31, 1]), ""),
    "a task in words": (setting("moduli", "all"), ""),
}
IN_FIT = {
    "no optimizer": (lambda c: c.pop("optimizer_states"), "optimizer_states"),
    "NaN in the optimizer": (
        lambda c: c["optimizer_states"][0]["state"][5]["exp_avg"].fill_(float("nan")),
        "exp_avg of",
    ),
    "a maximizing optimizer": (lambda c: c["optimizer_states"][0]["param_groups"][0].update(maximize=True), "maximize"),
    "another learning rate": (lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=9.0), "lr", "9.0"),
    "no loops": (lambda c: c.pop("loops"), "loops"),
    "another step": (lambda c: c.update(global_step=2), "2 as global_step"),
    "no callbacks": (lambda c: c.pop("callbacks"), "callbacks"),
    "a broken history": (lambda c: c["callbacks"].update({"HeadPatchingMonitor[]": {"history": 3}}), "training state"),
    "broken random state": (lambda c: c["callbacks"]["RunCheckpoint"]["rng"].update(torch=torch.zeros(3)), "training"),
    "no random state": (lambda c: c["callbacks"].update(RunCheckpoint={}), "rng"),
}


@pytest.mark.parametrize("command", ["fit", "validate", "analyze"])  # test goes the way of validate
@pytest.mark.parametrize("damage", IN_ALL)
def test_a_wrong_checkpoint_is_refused_by_name(
    cli: Cli, capsys: pytest.CaptureFixture[str], checkpoint: dict[str, Any], command: str, damage: str
) -> None:
    apply, *words = IN_ALL[damage]
    apply(wrong := copy.deepcopy(checkpoint))
    torch.save(wrong, "wrong.ckpt")
    assert_refused(cli, capsys, (*COMMANDS[command], "--ckpt_path", "wrong.ckpt"), *words)


@pytest.mark.parametrize("damage", IN_FIT)
def test_training_state_that_can_not_be_continued_from(
    cli: Cli, capsys: pytest.CaptureFixture[str], checkpoint: dict[str, Any], damage: str
) -> None:
    apply, *words = IN_FIT[damage]
    apply(wrong := copy.deepcopy(checkpoint))
    torch.save(wrong, "wrong.ckpt")
    args = (*COMMANDS["fit"], "--trainer.max_steps", 6, "--ckpt_path", "wrong.ckpt")
    assert_refused(cli, capsys, args, "wrong.ckpt", "training state", *words)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("hidden", ["weights", "callbacks", "pickle", "noise", "text", "nothing"])
def test_code_in_a_file_is_never_run(
    cli: Cli, capsys: pytest.CaptureFixture[str], checkpoint: dict[str, Any], command: str, hidden: str
) -> None:
    import pickle

    path = Path("stranger.ckpt")
    wrong: dict[str, Any] = copy.deepcopy(checkpoint)
    if hidden == "weights":
        wrong["state_dict"][W_IN] = Burglar()
    elif hidden == "callbacks":
        wrong["callbacks"]["RunCheckpoint"] = Burglar()
    torch.save(wrong, path)
    other = {"pickle": pickle.dumps(Burglar()), "noise": os.urandom(999), "text": b"weights: 1\n", "nothing": b""}
    if hidden in other:
        path.write_bytes(other[hidden])
    assert_refused(cli, capsys, (*COMMANDS[command], "--ckpt_path", path), "ckpt_path", "stranger.ckpt")
    assert not Path("broken_into").exists()


def test_validate_and_test_take_nothing_but_the_weights(cli: Cli, checkpoint: dict[str, Any]) -> None:
    bare = {key: checkpoint[key] for key in ("state_dict", "global_step", "hyper_parameters")}
    torch.save(bare | {"datamodule_hyper_parameters": checkpoint["datamodule_hyper_parameters"]}, "bare.ckpt")
    for command in ("validate", "test", "analyze"):
        assert cli(*COMMANDS[command], "--ckpt_path", "bare.ckpt") == 0


class Intruder(Callback):
    """Makes a folder when a Trainer gets it."""

    def __init__(self) -> None:
        os.mkdir("broken_into")


@pytest.mark.parametrize("command", ["validate", "test"])
def test_they_build_nothing_that_the_configuration_beside_the_weights_names(
    cli: Cli, checkpoint: dict[str, Any], command: str
) -> None:
    last = Path("stranger/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    torch.save(checkpoint, last)
    config = load_config()
    with_callback(config, f"{__name__}.{Intruder.__name__}")
    config["trainer"]["profiler"] = "no.such.Profiler"
    config["optimizer"] = {"class_path": "no.such.Optimizer"}
    save_config(config, Path("stranger/config.yaml"))
    assert cli(command, "--ckpt_path", last, *QUIET) == 0
    assert not Path("broken_into").exists()


@pytest.mark.parametrize("name", ["../up", "/tmp/up", "a/../../up", ".hidden", "a//b", "a\nb", "~/up", "$HOME"])
@pytest.mark.parametrize("option", ["logger.name", "logger.version", "HeadPatchingMonitor.name"])
def test_names_in_a_configuration_lead_nowhere_else(
    cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, name: str
) -> None:
    config = load_config()
    owner, _, key = option.partition(".")
    logger: dict[str, Any] = {"class_path": "lit_backdoor.logger.RunLogger", "init_args": {}}
    config["trainer"]["logger"] = logger
    options = logger["init_args"] if owner == "logger" else callback_options(config, owner)
    options[key] = name
    (tmp_path / "inside").mkdir()
    save_config(config, tmp_path / "inside" / "stranger.yaml")
    assert_refused(cli, capsys, ("fit", "--config", "inside/stranger.yaml"), f"{key}: '", "no plain name")


def test_runs_may_be_sorted_into_folders(cli: Cli) -> None:
    args = ("--trainer.max_steps", 2, "--trainer.logger.init_args.name", "mod29/lr=1e-3")
    assert cli(*COMMANDS["fit"], *args) == 0
    assert Path("mod29/lr=1e-3/version_0/metrics.csv").exists()


def test_the_tensorboard_command_listens_on_this_machine_only(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(*COMMANDS["fit"], "--trainer.max_steps", 2) == 0
    (command,) = (line for line in capsys.readouterr().out.splitlines() if "tensorboard" in line)
    assert command.endswith("tensorboard --logdir lightning_logs/version_0 --host localhost")
