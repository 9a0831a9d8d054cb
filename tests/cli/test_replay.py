"""`replay`: the tables of a finished run again, from the weights that it kept."""

import functools
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from lit_backdoor.callbacks import HeadPatchingMonitor
from lit_backdoor.runs.file_names import PROGRESS_MEASURES
from lit_backdoor.runs.weights import describe_stored, kept_weights, read_weights, write_weights
from tests.helpers import CONFIGS, QUIET
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli, contents, read_events, read_rows, scalars, train_run

TABLES = ("head_attribution.csv", "head_patching.csv", "path_patching.csv", "attention.csv", "head_specificity.csv")
TABLES += ("neurons.csv", "progress_measures.csv", "emergence.json")
TAGS = ("patching", "attribution", "paths", "attention", "specificity", "neurons", "progress")
SPLIT = ["--data.split_seed=3", "--data.split=pairs"]
"""Other than the default: progress measures know which pairs train."""
DENSE = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 25, 28, 32, 40, 48, 50, 75, 100, 110]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """110 steps of debug.yaml, with a dense beginning."""
    folder = tmp_path_factory.mktemp("replay") / "runs" / "live"
    options = ["--trainer.max_steps=110", "--trainer.val_check_interval=25"]
    options += SPLIT
    for name in ("monitors.attribution", "monitors.patching", "monitors.attention", "weights"):
        options += [f"--{name}.every_n_steps=25", f"--{name}.dense_until=50"]
    for name in ("paths", "specificity", "neurons", "progress"):
        options.append(f"--monitors.{name}.every_n_steps=50")
    options += ["--monitors.paths.max_examples=100", "--monitors.paths.full_every_n_steps=100"]
    return train_run(folder, *options)


def assert_same_as_live(live: Path, replayed: Path) -> None:
    for name in TABLES:
        assert (replayed / name).read_bytes() == (live / name).read_bytes(), name
    points = {tag: values for tag, values in scalars(live).items() if tag.startswith(TAGS)}
    assert scalars(replayed) == points
    ours, theirs = read_events(live).Tags(), read_events(replayed).Tags()
    assert ours["images"] == theirs["images"]
    assert set(theirs["tensors"]) == set(ours["tensors"])


def test_the_same_rows_byte_for_byte(cli: Cli, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(kept_weights(run)) == DENSE
    assert sorted({int(row["step"]) for row in read_rows(run / "head_patching.csv")}) == DENSE
    before = contents(run)
    assert cli("replay", run, "--output_dir", "again") == 0
    assert "24 steps, 0 to 110, into again" in capsys.readouterr().out
    assert contents(run) == before
    assert_same_as_live(run, tmp_path / "again")
    # Once more measures the last step once more, and changes nothing.
    assert cli("replay", run, "--output_dir", "again") == 0
    assert_same_as_live(run, tmp_path / "again")


def test_small_checkpoints_are_small_enough_for_the_papers_model(run: Path) -> None:
    sizes = {path.stat().st_size for path in kept_weights(run).values()}
    weights = 4 * (2 * 29 * 64 + 3 * 64 + 4 * 64 * 64 + 2 * 64 * 128)  # bytes; no biases, which are zero
    assert all(weights < size < weights + 3000 for size in sizes), sizes


@pytest.mark.parametrize("where", ["measure", "_save"])
def test_killed_anywhere_the_same_command_goes_on(
    cli: Cli, run: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by SIGKILL in the middle of a measurement, and between the tables and the note of how far it is."""
    from lit_backdoor.callbacks.recorder import Recorder

    kind = {"measure": HeadPatchingMonitor, "_save": Recorder}[where]
    original = getattr(kind, where)
    for calls in (1, 9, 3):
        if (child := os.fork()) == 0:
            left = iter(range(calls))

            @functools.wraps(original)
            def dying(*args: object, left: object = left, **kwargs: object) -> object:
                if next(left, None) is None:  # type: ignore[call-overload]
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            monkeypatch.setattr(kind, where, dying)
            cli("replay", run, "--output_dir", "again")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, calls
    assert cli("replay", run, "--output_dir", "again") == 0
    assert_same_as_live(run, tmp_path / "again")


def test_ctrl_c_stops_and_says_how_to_go_on(
    cli: Cli, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = HeadPatchingMonitor.measure, iter(range(5))

    def interrupted(*args: object) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(HeadPatchingMonitor, "measure", interrupted)
        assert cli("replay", run, "--output_dir", "again") == 130
    assert "the same command goes on with again" in capsys.readouterr().err
    assert cli("replay", run, "--output_dir", "again") == 0
    assert_same_as_live(run, tmp_path / "again")


def test_its_own_options_are_those_of_its_last_start(cli: Cli, run: Path, tmp_path: Path) -> None:
    continued = Path(shutil.copytree(run, tmp_path / "continued"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["monitors"] = {"attribution": {"every_n_steps": 50, "name": "later"}}
    (continued / "config_from_step_90.yaml").write_text(yaml.safe_dump(config))
    assert cli("replay", continued, "--output_dir", "again") == 0
    assert {path.name for path in (tmp_path / "again").glob("*.csv")} == {"head_attribution_later.csv"}


def test_other_monitors_than_the_runs_own(cli: Cli, run: Path, tmp_path: Path) -> None:
    chosen = {"monitors": {"patching": {"every_n_steps": 50, "ablations": ["mean"], "name": "mean"}}}
    (tmp_path / "monitors.yaml").write_text(yaml.safe_dump(chosen))
    assert cli("replay", run, "--config", "monitors.yaml") == 0
    rows = read_rows(run / "replay" / "head_patching_mean.csv")
    assert sorted({int(row["step"]) for row in rows}) == [0, 50, 100, 110]
    assert {row["ablation"] for row in rows} == {"mean"}
    shutil.rmtree(run / "replay")
    # the list that configurations had before monitors had names; what measures no weights is passed over
    listed = [
        {"class_path": "lit_backdoor.callbacks.HeadAttributionMonitor", "init_args": {"every_n_steps": 50}},
        {"class_path": "lit_backdoor.callbacks.LossSpikeMonitor"},
    ]
    (tmp_path / "monitors.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": listed}}))
    assert cli("replay", run, "--config", "monitors.yaml", "--output_dir", "listed") == 0
    assert {path.name for path in (tmp_path / "listed").glob("*.csv")} == {"head_attribution.csv"}


def test_the_weights_say_which_examples_trained(
    cli: Cli, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = Path(shutil.copytree(run, tmp_path / "bare"))
    (bare / "hparams.yaml").unlink()
    (tmp_path / "monitors.yaml").write_text(yaml.safe_dump({"monitors": {"progress": {"every_n_steps": 50}}}))
    command = ("replay", bare, "--config", "monitors.yaml", "--output_dir")
    assert cli(*command, "again") == 0
    assert (tmp_path / "again" / PROGRESS_MEASURES).read_bytes() == (run / PROGRESS_MEASURES).read_bytes()
    stored = read_weights(first := kept_weights(bare)[0])
    description = describe_stored(stored)
    for split, words in ((None, "do not say which examples trained"), ({"train_fraction": 2}, "train_fraction: 2")):
        described = {name: value for name, value in (description | {"split": split}).items() if value is not None}
        write_weights(first, dict(stored.model.named_parameters()), described)
        assert_refused(cli, capsys, (*command, "out"), words)


def test_a_branch_is_replayed_from_the_first_weights_that_it_keeps(cli: Cli, run: Path, tmp_path: Path) -> None:
    """It has its parent's rows from step 0 on, and weights of its own alone."""
    parent = Path(shutil.copytree(run, tmp_path / "runs" / "live"))
    last = parent / "checkpoints" / "last.ckpt"
    assert cli("fit", "--ckpt_path", last, "--branch", "on", "--trainer.max_steps", 160, *QUIET) == 0
    branch = parent.with_name("live_branch_on")
    assert list(kept_weights(branch)) == [125, 150, 160]
    assert cli("replay", branch, "--output_dir", "again") == 0
    for name in ("head_patching.csv", "head_attribution.csv", "head_specificity.csv"):
        live = [row for row in read_rows(branch / name) if int(row["step"]) >= 125]
        replayed = read_rows(tmp_path / "again" / name)  # at the first step all sets of heads
        assert live and [row for row in replayed if row in live] == live, name


def test_what_is_refused(cli: Cli, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def refused(chosen: object, *words: str, run_dir: Path = run) -> None:
        (tmp_path / "monitors.yaml").write_text(yaml.safe_dump(chosen))
        args = ("replay", run_dir, "--config", "monitors.yaml", "--output_dir", "out")
        assert_refused(cli, capsys, args, *words)
        assert not (tmp_path / "out").exists()

    fine = {"monitors": {"patching": {"every_n_steps": 50}}}
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "checkpoints" / "weights")
    refused(fine, "run_dir", "bare", "WeightCheckpoint", run_dir=bare)
    refused(fine, "run_dir", "nowhere", run_dir=tmp_path / "nowhere")
    refused({"monitors": {"patching": {"every_n_steps": 10}}}, "HeadPatchingMonitor", "step 30", "0 to 110")
    refused({"monitors": {"patching": {"every_n_steps": 0}}}, "every_n_steps", "0", "1 or more")
    clamped = {"monitors": {"patching": {"every_n_steps": 50, "clamped": True}}}
    refused(clamped, "HeadPatchingMonitor.clamped: replay measures without a clamp", "--config", "clamped: false")
    refused({"monitors": {"patching": {"every_steps": 1}}}, "every_steps")
    refused({"monitors": {"patch": {}}}, "monitors.patch", "attribution, patching")
    refused({"monitors": {"spikes": {}}}, "config", "no monitor")
    refused({"monitors": {"emergence": {"probe": "backdoor"}}}, "EmergenceMonitor.patching", "add one")
    refused({"monitors": {"patching": {"every_n_steps": 50, "model_attr": 3}}}, "model_attr")
    refused(fine | {"callbacks": ["lit_backdoor.Nothing"]}, "Nothing")
    probes = {"every_n_steps": 50, "probes": "tests.cli.test_replay.too_many_tokens"}
    refused({"monitors": {"patching": probes}}, "HeadPatchingMonitor", "probe 'bad'", "29")
    # a folder that holds something else, and a replay of other monitors
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "monitors.yaml").write_text(yaml.safe_dump(fine))
    full = ("replay", run, "--config", "monitors.yaml", "--output_dir", "full")
    assert_refused(cli, capsys, full, "output_dir", "not empty")
    assert cli("replay", run, "--config", "monitors.yaml", "--output_dir", "mine") == 0
    capsys.readouterr()
    assert_refused(cli, capsys, ("replay", run, "--output_dir", "mine"), "output_dir", "other monitors")


def test_a_replay_of_another_run_is_refused(
    cli: Cli, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two runs of one seed begin with the same weights, so that the first ones do not tell them apart."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    stored = read_weights(last := kept_weights(other)[110])
    changed = {name: 2 * value for name, value in stored.model.named_parameters()}
    write_weights(last, changed, describe_stored(stored))
    (tmp_path / "monitors.yaml").write_text(yaml.safe_dump({"monitors": {"attribution": {"every_n_steps": 50}}}))
    command = ("--config", "monitors.yaml", "--output_dir", "again")
    assert cli("replay", run, *command) == 0
    capsys.readouterr()
    before = contents(tmp_path / "again")
    assert_refused(cli, capsys, ("replay", other, *command), "output_dir: again is a replay of another run")
    assert contents(tmp_path / "again") == before
    # a run that has been trained on is the same one
    write_weights(last.with_name("step_000150.safetensors"), changed, describe_stored(stored) | {"step": 150})
    shutil.copy(kept_weights(run)[110], last)
    assert cli("replay", other, *command) == 0
    assert "1 steps, 150 to 150" in capsys.readouterr().out


def too_many_tokens() -> object:
    import torch

    from lit_backdoor.functional import Probe

    tokens = torch.full((2, 3), 29)
    return {"bad": Probe(tokens, tokens, torch.tensor([0, 1]), torch.tensor([1, 0]))}


def test_a_continued_run_keeps_the_weights_of_an_undisturbed_one(cli: Cli, run: Path, tmp_path: Path) -> None:
    options = [*SPLIT, "--trainer.val_check_interval=25", "--weights.every_n_steps=25", "--weights.dense_until=50"]
    live = train_run(tmp_path / "runs" / "two", "--trainer.max_steps=60", *options)
    last = live / "checkpoints" / "last.ckpt"
    assert list(kept_weights(live)) == [step for step in DENSE if step < 60] + [60]
    more = ("--trainer.max_steps", 110, *options, "--trainer.enable_progress_bar", "false", "--ckpt_path", last)
    assert cli("fit", "--config", CONFIGS / "debug.yaml", *more) == 0
    kept = {step: path.read_bytes() for step, path in kept_weights(live).items() if step != 60}
    assert kept == {step: path.read_bytes() for step, path in kept_weights(run).items()}
