"""Small runs of fit, made once: two seeds of mod 1, one of mod 5, one clean model."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_backdoor.pretrained import open_shipped
from lit_backdoor.runs.reading import read_runs
from lit_backdoor.runs.run import Run
from tests.helpers.configs import callback_options, load_config, save_config
from tests.helpers.runs import train_run

STEPS = 60
RUNS = (("mod1", [11, 1], 0), ("mod1", [11, 1], 1), ("mod5", [11, 5], 0), ("clean", [11], 0))


def small_config(moduli: list[int]) -> dict[str, Any]:
    """The debug configuration on a task that takes a second, probed every 20 steps, all sets every 40."""
    config = load_config()
    config["data"] |= {"moduli": moduli}
    config["model"] |= {"d_model": 32, "d_mlp": 64}
    config["trainer"] |= {"max_steps": STEPS, "val_check_interval": 20}
    arguments = {
        "HeadAttributionMonitor": {"every_n_steps": 20},
        "HeadPatchingMonitor": {"every_n_steps": 20, "full_every_n_steps": 40},
        "EmergenceMonitor": {"probe": "backdoor" if len(moduli) > 1 else None},
        "RunCheckpoint": {"every_n_steps": 20, "keep_every_n_steps": None},
    }
    for name, options in arguments.items():
        callback_options(config, name).update(options)
    return config


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs; tests that change something take a copy, see ``runs_dir``."""
    folder = tmp_path_factory.mktemp("made")
    for name, moduli, seed in RUNS:
        config = save_config(small_config(moduli), folder / f"{name}.yaml")
        train_run(folder / "runs" / name / f"seed_{seed}", f"--seed_everything={seed}", config=config)
    return folder / "runs"


@pytest.fixture
def runs_dir(made: Path, tmp_path: Path) -> Path:
    """A copy of the runs, to change."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


@pytest.fixture(scope="session")
def runs(made: Path) -> list[Run]:
    """The runs, read."""
    return read_runs([made], open_shipped)
