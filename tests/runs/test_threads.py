"""The same bits with any number of threads, and nobody's setting changed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_backdoor.datamodule import BackdoorDataModule
from lit_backdoor.functional.row_threads import row_threads, set_row_threads
from lit_backdoor.module import BackdoorModule
from tests.helpers import QUIET, ROOT
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli, assert_same_results

Fit = Callable[..., Path]
SMALL = ("--data.moduli", "[17,1]", "--model.d_model", "32", "--model.d_mlp", "32", "--model.n_heads", "2")
FORMS = {
    "last position": (2, 4, ()),
    "whole pass": (4, 2, ("--model.last_position", "false")),
    "two layers": (2, 4, ("--model.n_layers", "2", "--model.normalization_type", "LN")),
}
"""The threads of a run, those of its continuation, and options."""


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    torch.set_num_threads(3)  # PyTorch's own threads, which nothing here is to use or to change
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    set_row_threads(None)


@pytest.fixture
def fit(cli: Cli, debug_config: Path) -> Fit:
    runs = 0

    def run(steps: int, *options: object) -> Path:
        nonlocal runs
        assert cli("fit", "--config", debug_config, "--trainer.max_steps", steps, *QUIET, *options) == 0
        runs += "--ckpt_path" not in options
        return Path(f"lightning_logs/version_{runs - 1}")

    return run


@pytest.mark.parametrize("form", FORMS)
def test_a_run_and_a_resume(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    monkeypatch.setattr("lit_backdoor.functional.row_threads.BLOCK_ROWS", 50)
    threads, then, more = FORMS[form]
    options = (*SMALL, *more, "--monitors.patching.every_n_steps", 5, "--monitors.paths.max_examples", 120)
    alone = fit(8, *options, "--threads", 1)
    run = fit(4, *options, "--threads", threads)
    fit(8, *options, "--threads", then, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert_same_results(alone, run)
    kept = [json.loads((run / name).read_text()) for name in ("environment.json", "environment_from_step_4.json")]
    assert [environment["threads"] for environment in kept] == [threads, then]
    assert "note:" not in capsys.readouterr().err  # another number of threads is no other environment


def test_an_analysis(fit: Fit, cli: Cli) -> None:
    checkpoint = fit(8, "--threads", 2) / "checkpoints" / "last.ckpt"
    for threads in (1, 2, 4):
        where = ("--ckpt_path", checkpoint, "--output_dir", f"analysis_{threads}", "--threads", threads)
        assert cli("analyze", *where) == 0
        assert row_threads() == threads
    tables = [path.name for path in Path("analysis_1").glob("*.csv")]
    assert tables
    for table in tables:
        first, *others = (Path(f"analysis_{threads}", table).read_bytes() for threads in (1, 2, 4))
        assert others == [first, first], table


def test_another_process_with_another_omp_num_threads(fit: Fit, debug_config: Path) -> None:
    alone = fit(8, "--threads", 1)
    command = [
        sys.executable,
        "-m",
        "lit_backdoor",
        "fit",
        "--config",
        debug_config,
        "--trainer.max_steps",
        "8",
        *QUIET,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    other = Path("lightning_logs/version_1")
    assert_same_results(alone, other)
    kept = json.loads((other / "environment.json").read_text())
    assert kept["threads"] == min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


@pytest.mark.parametrize("command", ["fit", "analyze"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_wrong_number_is_one_line(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str], command: str, value: str
) -> None:
    where = ("--config", debug_config) if command == "fit" else ("--pretrained", "mod1", "--output_dir", "out")
    assert_refused(cli, capsys, (command, *where, "--threads", value), "threads", value, "a whole number, 1 or more")


class Seen(Callback):
    """How many threads PyTorch has between two steps."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize("batches", [1, 2])
def test_a_trainer_of_ones_own(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Without the command line; also where several batches make one step."""
    monkeypatch.setattr("lit_backdoor.functional.row_threads.BLOCK_ROWS", 50)
    weights = []
    for torch_threads, threads in ((1, 1), (3, 2), (3, 4)):
        torch.set_num_threads(torch_threads)
        set_row_threads(threads)
        torch.manual_seed(0)
        module = BackdoorModule(moduli=[17, 3], d_model=32, d_mlp=64)
        trainer = Trainer(
            accelerator="cpu", max_steps=4, accumulate_grad_batches=batches, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[Seen()] * (torch_threads == 3),
        )  # fmt: skip
        trainer.fit(module, BackdoorDataModule(moduli=[17, 3]))
        assert torch.get_num_threads() == torch_threads
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    for other in weights[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights[0], other, strict=True))
