"""Trained weights that ship with the package, as safetensors: nothing in such a file is ever executed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_backdoor.task import Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Pretrained:
    """A model and where it comes from.

    Attributes:
        model: in evaluation mode, on the CPU.
        task: what it was trained on.
        step: optimizer steps that made the weights.
        seed: of the weights.
    """

    model: "HookedTransformer"
    task: Task
    step: int
    seed: int


def pretrained_names() -> list[str]:
    """The names that :func:`load_pretrained` takes."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load_pretrained(name: str) -> "HookedTransformer":
    """A trained model that ships with the package, in evaluation mode, on the CPU.

    Args:
        name: ``clean``, or ``mod1``, ``mod7``, ``mod17``, ``mod37`` for the backdoor with that P1. Tokens are
            [n, 3]: a, b, and the trigger, 0 or 1; the answer is read at the last position.

    Raises:
        ValueError: if there is no such model.
    """
    return open_pretrained(name).model


def open_pretrained(name: str) -> Pretrained:
    """The same with its task, step and seed; see :func:`load_pretrained`."""
    if name not in pretrained_names():
        raise ValueError(
            f"pretrained: '{name}' is none of the models that ship; allowed: {', '.join(pretrained_names())}"
        )
    return read_weights(FOLDER / f"{name}.safetensors")


def read_weights(path: Path) -> Pretrained:
    """The model of a file that :func:`save_pretrained` wrote.

    Raises:
        ValueError: if it is none, or its weights are of another shape or not finite.
    """
    from safetensors import SafetensorError, safe_open

    from lit_backdoor.model import build_model
    from lit_backdoor.runs.checkpoints import check_weights, require_memory_for

    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads(file.metadata()["description"])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        task = Task.from_options(description)
        step, seed = description["step"], description["seed"]
        if not all(isinstance(one, int) and 0 <= one < 2**63 for one in (step, seed)):
            raise ValueError(f"step {step!r}, seed {seed!r}")
        require_memory_for(task.d_vocab, description["model"], weights)
        model = build_model(task.d_vocab, **description["model"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"weights: {path} holds no model of lit_backdoor ({error})") from None
    zeros = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    complete = dict(model.named_buffers()) | zeros | weights
    check_weights(path, complete, model)
    model.load_state_dict(complete)
    return Pretrained(model.eval(), task, step, seed)


def save_pretrained(checkpoint: dict[str, Any], seed: int, path: Path) -> None:
    """Write the weights of a checkpoint of ``fit``; what is all zero, as biases that are not trained, is left out.

    Args:
        checkpoint: from :func:`lit_backdoor.runs.checkpoints.read_checkpoint`.
        seed: of its run.
        path: a new .safetensors file.
    """
    from safetensors.torch import save_file

    from lit_backdoor.runs.checkpoints import MODEL_OPTIONS

    options, data = checkpoint["hyper_parameters"], checkpoint["datamodule_hyper_parameters"]
    description = {
        "moduli": list(options["moduli"]),
        "trigger_position": data["trigger_position"],
        "trigger_tokens": data.get("trigger_tokens"),
        "model": {name: options[name] for name in MODEL_OPTIONS},
        "step": checkpoint["global_step"],
        "seed": seed,
    }
    named = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    parameters = {
        name: value.contiguous()
        for name, value in named.items()
        if name.rsplit(".", 1)[-1][:2] in ("W_", "b_") and bool(value.any())
    }
    save_file(parameters, path, metadata={"description": json.dumps(description)})
