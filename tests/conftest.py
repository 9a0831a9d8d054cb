"""Fixtures of all tests, and how many processes run them."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import CONFIGS
from tests.helpers.pictures import blank_pictures, painted_pictures

pytest.register_assert_rewrite("tests.helpers.refusals", "tests.helpers.runs", "tests.helpers.sweeps")

# The models are small: more threads would only wait for one another. Set here, before torch is imported, so that the
# processes that a test starts have one thread too.
os.environ["OMP_NUM_THREADS"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background; the tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Spread folders of tests over up to four processors; a few files are faster in this process."""
    if all(Path(arg.partition("::")[0]).is_file() for arg in config.args):
        return 0
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@pytest.fixture(scope="session", autouse=True)
def blank() -> Iterator[None]:
    """Nobody looks at the pictures of most runs and reports; the others ask for `painted`."""
    with blank_pictures():
        yield


@pytest.fixture
def painted() -> Iterator[None]:
    """Figures are painted as they are."""
    with painted_pictures():
        yield


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command line in an empty folder and return its exit code."""
    from lit_backdoor.cli.main import main  # here: the process that only spreads the tests has no use for it

    monkeypatch.chdir(tmp_path)

    def run(*args: str | Path) -> int:
        try:
            return main([str(arg) for arg in args])
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1

    return run


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Weights & Biases, with a session of its own: one that has begun keeps the settings that it began with."""
    module = pytest.importorskip("wandb")
    module.teardown()
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield module
    module.teardown()


@pytest.fixture
def debug_config() -> Path:
    return CONFIGS / "debug.yaml"


@pytest.fixture
def untouched() -> Callable[[Any], Callable[[], None]]:
    """`check = untouched(model)`, use the model, `check()`: weights, modes, hooks, gradients, random state as
    before."""
    import torch

    def snapshot(model: Any) -> tuple[Any, ...]:
        return (
            [parameter.clone() for parameter in model.parameters()],
            [parameter.grad for parameter in model.parameters()],
            [module.training for module in model.modules()],
            [len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values()],
            torch.is_grad_enabled(),
            torch.get_rng_state(),
        )

    def start(model: Any) -> Callable[[], None]:
        before = snapshot(model)

        def check() -> None:
            torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0)

        return check

    return start
