"""Train a small transformer with a backdoor, and measure while it trains which attention heads it needs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from transformer_lens import HookedTransformer

__version__ = "0.2.0"


def load_pretrained(name: "str | Path") -> "HookedTransformer":
    """A trained model that ships, or was exported; see :func:`lit_backdoor.pretrained.load_pretrained`."""
    from lit_backdoor import pretrained  # here, so that importing the package costs nothing

    return pretrained.load_pretrained(name)


def read_run(run_dir: "str | Path") -> "dict[str, pd.DataFrame]":
    """The tables of a run as data frames; see :func:`lit_backdoor.runs.frames.read_run`."""
    from lit_backdoor.runs import frames

    return frames.read_run(run_dir)


def replay(*args: Any, **kwargs: Any) -> None:
    """Measure models that are there already; see :func:`lit_backdoor.callbacks.recorder.replay`."""
    from lit_backdoor.callbacks import recorder

    recorder.replay(*args, **kwargs)
