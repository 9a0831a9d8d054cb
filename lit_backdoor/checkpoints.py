"""Reading checkpoint files: what is in them, and a clear word about what is wrong with them."""

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from lit_backdoor.model import build_model
from lit_backdoor.task import Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

MODEL_OPTIONS = (
    "n_heads",
    "d_model",
    "d_head",
    "d_mlp",
    "n_layers",
    "act_fn",
    "normalization_type",
    "train_biases",
)
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


def load_model(path: Path) -> "tuple[HookedTransformer, Task, int]":
    """The model of a checkpoint, the task it was trained on, and the optimizer steps that made it.

    Raises:
        ValueError: in one line, if the file is not such a checkpoint, or its weights are missing, of another shape,
            or not finite.
    """
    checkpoint = read_checkpoint(path)
    try:
        hyper_parameters = checkpoint["hyper_parameters"]
        task = Task(tuple(hyper_parameters["moduli"]), checkpoint["datamodule_hyper_parameters"]["trigger_position"])
        sizes = {name: hyper_parameters[name] for name in MODEL_OPTIONS}
        prefix = "model."
        weights = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"ckpt_path: {path} does not describe its task and model ({error})") from None
    model = build_model(task.d_vocab, **sizes)
    for name, parameter in model.named_parameters():
        if name not in weights:
            raise ValueError(f"ckpt_path: {path} lacks the weight {name}")
        if weights[name].shape != parameter.shape:
            shapes = f"{list(weights[name].shape)} instead of {list(parameter.shape)}"
            raise ValueError(f"ckpt_path: {path} has {name} in the shape {shapes}")
        if not weights[name].isfinite().all():
            raise ValueError(f"ckpt_path: {path} has values in {name} that are not finite")
    model.load_state_dict({name: weights[name] for name, _ in model.named_parameters()}, strict=False)
    return model.eval(), task, checkpoint["global_step"]


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
