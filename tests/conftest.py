"""What the tests share: the repository's folders, and the command line run in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_backdoor.cli.main import main

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"

torch.set_num_threads(1)  # the models are small; more threads would only wait for one another


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command line in an empty folder and return its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str | Path) -> int:
        try:
            return main([str(arg) for arg in args])
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1

    return run


@pytest.fixture
def debug_config() -> Path:
    return CONFIGS / "debug.yaml"


@pytest.fixture
def untouched() -> Callable[[Any], Callable[[], None]]:
    """`check = untouched(model)`, use the model, `check()`: weights, modes, hooks, gradients, random state as
    before."""

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
