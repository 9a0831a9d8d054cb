"""Reading checkpoint files: what is in them, and a clear word about what is wrong with them."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

REQUIRED = ("state_dict", "global_step", "hyper_parameters", "datamodule_hyper_parameters")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint that ``fit`` wrote, on the CPU; nothing in the file is executed.

    Raises:
        ValueError: in one line, if the file is missing, unreadable or not such a checkpoint.
    """
    if not path.is_file():
        raise ValueError(f"ckpt_path: {path} is not a file; give a checkpoint, such as RUN_DIR/checkpoints/last.ckpt")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(f"ckpt_path: {path} is no checkpoint, or holds code, which is never run") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"ckpt_path: {path} can't be read as a checkpoint ({reason})") from None
    missing = [key for key in REQUIRED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ValueError(f"ckpt_path: {path} is not a checkpoint of lit_backdoor fit; it lacks {', '.join(missing)}")
    return checkpoint


def require_same(stored: dict[str, Any], configured: dict[str, Any], group: str, ignore: frozenset[str]) -> None:
    """Compare the hyperparameters of a checkpoint with those asked for.

    Raises:
        ValueError: naming the first option of ``group`` ("model" or "data") that differs.
    """
    for name, value in configured.items():
        if name in ignore or name not in stored:
            continue
        if _plain(stored[name]) != _plain(value):
            raise ValueError(
                f"{group}.{name}: {_plain(value)} does not fit the checkpoint, which has {_plain(stored[name])}; "
                f"use the checkpoint's value, or start without --ckpt_path"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
