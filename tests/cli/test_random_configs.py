"""Whatever somebody configures: it runs, or one line says why not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from lit_backdoor.cli.main import main
from tests.helpers.configs import load_config, save_config

sizes = st.sampled_from([-1, 0, 1, 2, 3, 8])
numbers = st.sampled_from([-1.0, 0.0, 1e-3, 0.5, 1.0, 1e9, float("nan"), float("inf")])
anything = st.one_of(
    st.none(), st.booleans(), sizes, numbers, st.sampled_from(["", "x", "relu", "auto"]), st.lists(sizes)
)
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "data": {
        "moduli": st.lists(st.integers(-1, 7), max_size=3),
        "trigger_position": st.integers(-1, 3),
        "train_fraction": numbers,
        "split": st.sampled_from(["examples", "pairs", "rows"]),
        "split_seed": st.integers(-1, 2),
        "steps_per_epoch": sizes,
    },
    "model": {
        "n_layers": st.integers(0, 2),
        "n_heads": sizes,
        "d_model": st.sampled_from([0, 4, 6, 8]),
        "d_head": st.none() | sizes,
        "d_mlp": sizes,
        "act_fn": st.sampled_from(["relu", "gelu", "silu", "step"]),
        "normalization_type": st.sampled_from([None, "LN", "RMS"]),
        "train_biases": st.booleans(),
        "lr": numbers,
        "weight_decay": numbers,
        "last_position": st.booleans(),
    },
    "trainer": {
        "val_check_interval": sizes | numbers,
        "check_val_every_n_epoch": st.none() | sizes,
        "log_every_n_steps": sizes,
        "accumulate_grad_batches": sizes,
        "limit_train_batches": sizes | numbers,
        "limit_val_batches": sizes | numbers,
        "num_sanity_val_steps": sizes,
        "gradient_clip_val": st.none() | numbers,
        "max_epochs": st.sampled_from([-2, -1, 0, 1, 2]),
        "precision": st.sampled_from(["32-true", "64-true", "bf16-mixed", "16", "bar"]),
        "devices": st.sampled_from([1, 2, 0, "auto"]),
    },
}


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """The debug configuration, small, with a few options changed, mostly into something of the right type."""
    config = load_config()
    config["data"] |= {"moduli": [5, 2]}
    config["model"] |= {"d_model": 8, "d_mlp": 4}
    config["trainer"] |= {"max_steps": 3, "enable_progress_bar": False}
    every = [(group, name) for group, options in OPTIONS.items() for name in options]
    for group, name in draw(st.lists(st.sampled_from(every), min_size=1, max_size=3, unique=True)):
        odd = draw(st.integers(0, 5)) == 0
        config[group][name] = draw(anything if odd else OPTIONS[group][name])
        note(f"{group}.{name}: {config[group][name]!r}")
    return config


@contextmanager
def empty_folder(parent: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = parent / f"example_{len(list(parent.iterdir()))}"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        yield folder


@settings(
    max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # a configuration is short, and every attempt to make it shorter is a run
)  # fmt: skip
@given(config=configs())
def test_it_runs_or_says_why_not(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with empty_folder(tmp_path, monkeypatch) as folder:
        save_config(config, Path("config.yaml"))
        capsys.readouterr()
        try:
            code: int | str | None = main(["fit", "--config", "config.yaml"])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        note(printed.err)
        if code == 0:
            assert (folder / "lightning_logs" / "version_0" / "metrics.csv").exists()
        elif code == 1:  # a learning rate of 1e9 ...
            assert "is not finite" in printed.err or "the training loss is" in printed.err
        else:
            assert code == 2
            lines = printed.err.strip().splitlines()
            assert len(lines) == 1 and lines[0].startswith("error: "), lines
            assert list(folder.iterdir()) == [folder / "config.yaml"]
