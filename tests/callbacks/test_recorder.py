"""Monitors without a Trainer write what they write inside one, and the order of callbacks does not matter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

import lit_backdoor
from lit_backdoor.callbacks import (
    ContractError,
    EmergenceMonitor,
    HeadAttributionMonitor,
    HeadPatchingMonitor,
    LossSpikeMonitor,
    Recorder,
    Schedule,
    WeightCheckpoint,
)
from lit_backdoor.runs.tables import curves, read_table
from lit_backdoor.runs.weights import kept_weights, load_weights
from tests.helpers.both_kinds import KINDS, make_model
from tests.helpers.copy_task import SHAPE, CopyModule, copy_probes, loader, train
from tests.helpers.runs import contents, read_events, read_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
TABLES = ("head_attribution.csv", "head_patching.csv", "emergence.json")
STEPS = 14


def monitors(reverse: bool = False, **where: Any) -> list[Any]:
    common = {"every_n_steps": 4, "dense_until": 3, "probes": copy_probes, **where}
    chosen = [HeadAttributionMonitor(**common), HeadPatchingMonitor(**common), EmergenceMonitor("copy")]
    return chosen[::-1] if reverse else chosen


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run inside a Trainer, which kept its weights."""
    folder = tmp_path_factory.mktemp("live")
    watch = [*monitors(model_attr="parts.net"), WeightCheckpoint(4, 3, model_attr="parts.net")]
    train(folder, *watch, max_steps=STEPS, enable_checkpointing=True, logger=TensorBoardLogger(folder, "", "run"))
    return folder / "run"


def plain_loop(record: Any, steps: int = STEPS) -> None:
    """What `train` does, with neither Lightning's loops nor its logging."""
    torch.manual_seed(0)
    module = CopyModule()
    model, optimizer = module.parts["net"], torch.optim.Adam(module.parameters(), lr=1e-2)
    record(0, model)
    for step, (tokens,) in enumerate(loader(40 * 64, seed=1), start=1):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens)[:, -1], tokens[:, 0]).backward()
        optimizer.step()
        record(step, model)
        if step == steps:
            break


def test_a_plain_loop_gets_the_same_files(live: Path, tmp_path: Path) -> None:
    with Recorder(monitors(), tmp_path / "plain") as recorder:
        plain_loop(recorder)
    assert sorted({int(row["step"]) for row in read_rows(live / "head_patching.csv")}) == [0, 1, 2, 3, 4, 8, 12, 14]
    for name in TABLES:
        assert (tmp_path / "plain" / name).read_bytes() == (live / name).read_bytes(), name
    ours, theirs = read_events(tmp_path / "plain"), read_events(live)
    for tag in ours.Tags()["scalars"]:
        assert [(e.step, e.value) for e in ours.Scalars(tag)] == [(e.step, e.value) for e in theirs.Scalars(tag)], tag
    assert ours.Tags()["images"] == theirs.Tags()["images"]
    assert len(ours.Tensors("custom_scalars__config__")) == 1


def test_the_order_of_the_monitors_does_not_matter(live: Path, tmp_path: Path) -> None:
    with Recorder(monitors(reverse=True), tmp_path / "plain") as recorder:
        plain_loop(recorder)
    train(tmp_path / "inside", *monitors(reverse=True, model_attr="parts.net"), max_steps=STEPS)
    for name in TABLES:
        for folder in ("plain", "inside"):
            assert (tmp_path / folder / name).read_bytes() == (live / name).read_bytes(), name


def test_replay_of_a_model_of_ones_own(live: Path, tmp_path: Path) -> None:
    weights = kept_weights(live)
    assert list(weights) == [0, 1, 2, 3, 4, 8, 12, 14]

    def models(steps: list[int]) -> Any:
        model = make_model("TransformerBridge", **SHAPE)
        for step in steps:
            load_weights(model, weights[step])
            yield step, model

    metrics = curves(read_table(live / "metrics.csv"))
    lit_backdoor.replay(models([0, 1, 2]), monitors(), tmp_path / "again", metrics)  # ends too early
    lit_backdoor.replay(models(list(weights)), monitors(), tmp_path / "again", metrics)
    for name in TABLES:
        assert (tmp_path / "again" / name).read_bytes() == (live / name).read_bytes(), name


def test_a_loop_that_goes_on_from_a_checkpoint(live: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def killed(step: int, model: Any) -> None:
        recorder(step, model)
        if step == 9:
            raise Killed

    with pytest.raises(Killed), Recorder(monitors(), tmp_path / "run") as recorder:
        plain_loop(killed)
    with Recorder(monitors(), tmp_path / "run", start_step=6) as recorder:
        plain_loop(lambda step, model: recorder(step, model) if step >= 6 else None)
    for name in TABLES:
        assert (tmp_path / "run" / name).read_bytes() == (live / name).read_bytes(), name


def killed(recorder: Recorder, model: Any, steps: range) -> None:
    """Record some steps, each with an accuracy of step / 10, and end without a last word."""
    with pytest.raises(KeyboardInterrupt), recorder:
        for step in steps:
            recorder(step, model, {"train/copy_accuracy": step / 10})
        raise KeyboardInterrupt


def test_metrics_given_between_two_measurements_survive_a_kill(tmp_path: Path) -> None:
    model = make_model(KINDS[0], **SHAPE)
    killed(Recorder(monitors(), tmp_path / "run"), model, range(8))  # measured last at 4
    killed(Recorder(monitors(), tmp_path / "run", start_step=6), model, range(6, 8))
    accuracy = {step: step / 10 for step in range(11)}
    for folder, start in (("run", 7), ("whole", None)):
        with Recorder(monitors(), tmp_path / folder, start) as recorder:
            for step in range(start or 0, 11):
                recorder(step, model, {"train/copy_accuracy": accuracy[step]})
        assert recorder.metrics == {"train/copy_accuracy": accuracy}
    for name in (*TABLES, "recorded_metrics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_recorder_goes_on_from_start_step_whatever_is_recorded_first(tmp_path: Path) -> None:
    model = make_model(KINDS[0], **SHAPE)
    killed(Recorder(monitors(), tmp_path / "run"), model, range(5))
    before = contents(tmp_path / "run")
    with pytest.raises(ContractError, match="start_step: 2 is after step 1, which is recorded first"):
        Recorder(monitors(), tmp_path / "run", start_step=2)(1, model)
    assert contents(tmp_path / "run") == before
    killed(Recorder(monitors(), tmp_path / "run", start_step=2), model, range(5, 6))
    for name in ("head_patching.csv", "head_attribution.csv", "recorded_metrics.csv"):
        assert sorted({row["step"] for row in read_rows(tmp_path / "run" / name)}) == ["0", "1", "5"], name


def test_what_a_recorder_refuses(tmp_path: Path) -> None:
    model = make_model(KINDS[0], **SHAPE)
    with Recorder(monitors(), tmp_path / "run") as recorder:
        recorder(0, model)
        with pytest.raises(ValueError, match="step 0 comes after step 0"):
            recorder(0, model)
        with (
            pytest.raises(ValueError, match="in use by another process"),
            Recorder(monitors(), tmp_path / "run") as two,
        ):
            two(0, model)
    before = contents(tmp_path / "run")
    for start, monitor, words in (
        (None, monitors()[1], "another Recorder has recorded, up to step 0; nothing is overwritten"),
        (1, monitors()[1], "can't go on with it"),
    ):
        with pytest.raises(ContractError, match=words), Recorder([monitor], tmp_path / "run", start) as recorder:
            recorder(1, model)
    assert contents(tmp_path / "run") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recorded_metrics.csv").write_text("step,metric,value\n3,mine,1\n")
    with pytest.raises(ContractError, match=r"recorded_metrics\.csv is there already"):
        Recorder(monitors(), tmp_path / "mine")(0, model)
    assert not list((tmp_path / "mine").glob("events*"))
    with pytest.raises(ContractError, match="LossSpikeMonitor measures no weights"):
        Recorder([LossSpikeMonitor()], tmp_path / "other")  # type: ignore[list-item]
    recorder = Recorder([HeadPatchingMonitor(), EmergenceMonitor("other")], tmp_path / "other", probes=copy_probes)
    with pytest.raises(ContractError, match="'other' is not among the probes"):
        recorder(0, model)
    assert not (tmp_path / "other").exists()
    recorder = Recorder([HeadPatchingMonitor(probes=copy_probes)], tmp_path / "late")
    recorder(0, model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(ValueError, match="the weights have changed since recorder\\(0, model\\)"):
        recorder.close()


def test_other_loggers(tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases gets figures and texts as TensorBoard does; a logger without such things is passed over."""
    board = WandbLogger(save_dir=tmp_path, offline=True, settings=wandb.Settings(console="off"))
    logged: dict[str, Any] = {}
    log = board.experiment.log
    monkeypatch.setattr(board.experiment, "log", lambda values, *args, **kw: (logged.update(values), log(values))[0])
    with Recorder(monitors(), tmp_path / "run", loggers=[board, CSVLogger(tmp_path, "csv")]) as recorder:
        recorder(0, make_model(KINDS[0], **SHAPE))
    wandb.finish()
    figures = {"figures/head_attribution", "figures/patching_copy"}
    assert all(type(logged[tag][0]).__name__ == "Image" for tag in figures)
    assert "| None |" in logged["head_patching/table_1"].data[-1][1]
    assert "- " in logged["emergence/verdict_so_far"].data[-1][1]
    row = read_rows(tmp_path / "run" / "head_patching.csv")[0]
    assert logged["patching_copy/logit_diff/none"] == pytest.approx(float(row["logit_diff"]))
    assert (tmp_path / "csv" / "version_0" / "metrics.csv").exists()
    assert not list((tmp_path / "run").glob("events*"))


def test_a_fresh_run_overwrites_no_weights(tmp_path: Path) -> None:
    keep = WeightCheckpoint(every_n_steps=2, model_attr="parts.net")
    options = {"max_steps": 2, "enable_checkpointing": True}
    train(tmp_path, keep, **options)
    before = contents(tmp_path)
    assert set(before) == {f"checkpoints/weights/step_00000{step}.safetensors" for step in (0, 2)}
    with pytest.raises(ContractError, match="weights of another run; nothing is overwritten"):
        train(tmp_path, keep, **options)
    assert contents(tmp_path) == before
    with pytest.raises(ContractError, match=r"WeightCheckpoint\.model_attr: CopyModule has no 'net'"):
        train(tmp_path / "new", WeightCheckpoint(model_attr="net"), **options)


def test_a_schedule_is_what_its_docstring_says() -> None:
    due = [step for step in range(513) if Schedule(10**9, dense_until=512).is_due(step)]
    listed = (Schedule.__doc__ or "").partition("doubling: ")[2].partition(" and so on")[0]
    assert due[1:] == [int(number) for number in listed.split(",")]
    octaves = [[s for s in due if 2**k <= s < 2 ** (k + 1)] for k in range(2, 9)]
    assert all(len(octave) == 4 for octave in octaves)
    assert [step for step in range(31) if Schedule(10, dense_until=9).is_due(step)] == [*range(9), 10, 20, 30]
    for wrong in ({"every_n_steps": 0}, {"dense_until": -1}):
        with pytest.raises(ValueError, match=rf"Schedule\.{next(iter(wrong))}"):
            Schedule(**wrong)
