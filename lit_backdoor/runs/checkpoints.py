"""Reading checkpoint files: what is in them, and a clear word about what is wrong with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from lit_backdoor.datamodule import split_arguments
from lit_backdoor.model import build_model
from lit_backdoor.runs.file_names import LAST, PREVIOUS, STEP_CHECKPOINTS
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
OF_ANOTHER_TASK = "; if it is of another task, analyze takes it with --probes"
"""What to say of a checkpoint that somebody else's LightningModule wrote."""
REQUIRED = ("state_dict", "global_step", "hyper_parameters", "datamodule_hyper_parameters")


@dataclass(frozen=True)
class StoredModel:
    """A model and where it comes from.

    Attributes:
        model: in evaluation mode, on the CPU.
        task: what it was trained on; None for a task that is not ours.
        step: optimizer steps that made the weights; None if it is not known.
        seed: of the weights; None if it is not known.
        split: arguments of :func:`lit_backdoor.task.split_examples` that say which examples trained; what is not among
            them has its default. None if nobody knows.
        reading: of a file from elsewhere: its layout, what in it was left out, and what was assumed.
    """

    model: "HookedTransformer"
    task: Task | None
    step: int | None
    seed: int | None
    split: Mapping[str, Any] | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path, option: str = "ckpt_path") -> dict[str, Any]:
    """Load a checkpoint that ``fit`` wrote, on the CPU; nothing in the file is executed.

    Args:
        option: which names the file in errors.

    Raises:
        ValueError: in one line, if the file is missing, unreadable or not such a checkpoint; with an earlier one of the
            same run, if there is one that can be read.
    """
    try:
        return _read(path, option)
    except ValueError as error:
        for candidate in _earlier(path):
            try:
                step = _read(candidate, option)["global_step"]
            except ValueError:
                continue
            raise ValueError(f"{error}; the one before it is whole: --{option} {candidate} (step {step})") from None
        raise


def read_torch_file(path: Path, option: str) -> Any:
    """What a file holds that PyTorch has saved, on the CPU; nothing in it is executed.

    Args:
        option: which names the file in errors.

    Raises:
        ValueError: in one line, if the file is missing or unreadable, or holds code.
    """
    if not path.is_file():
        raise ValueError(f"{option}: '{path}' is not a file; give a checkpoint, such as RUN_DIR/checkpoints/last.ckpt")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(f"{option}: {path} is no checkpoint, or holds code, which is never run") from None
    except Exception as error:  # whatever a reader of archives and pickles may meet in a damaged or foreign file
        reason = str(error).split("\n", 1)[0].split(". ", 1)[0] or type(error).__name__
        raise ValueError(f"{option}: {path} can't be read as a checkpoint ({reason})") from None


def _read(path: Path, option: str) -> dict[str, Any]:
    checkpoint = read_torch_file(path, option)
    missing = [key for key in REQUIRED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        hint = OF_ANOTHER_TASK if isinstance(checkpoint, dict) and "state_dict" in checkpoint else ""
        raise ValueError(
            f"{option}: {path} is not a checkpoint of lit_backdoor fit; it lacks {', '.join(missing)}{hint}"
        )
    step = checkpoint["global_step"]
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"{option}: {path} is at step {step!r}, which is no number of optimizer steps")
    for key in REQUIRED:
        if key != "global_step" and not isinstance(checkpoint[key], dict):
            raise ValueError(f"{option}: {path} holds {type(checkpoint[key]).__name__} as {key}, no mapping")
    return checkpoint


def _earlier(path: Path) -> list[Path]:
    """The other checkpoints beside a last.ckpt, newest first."""
    if path.name != LAST or not path.is_file():
        return []
    candidates = [path.with_name(PREVIOUS), *sorted(path.parent.glob(STEP_CHECKPOINTS), reverse=True)]
    return [candidate for candidate in candidates if candidate.is_file()]


def load_model(path: Path, option: str = "ckpt_path") -> StoredModel:
    """The model of a checkpoint.

    Args:
        option: which names the file in errors.

    Raises:
        ValueError: in one line, if the file is not such a checkpoint, or its weights are missing, of another shape,
            or not finite.
    """
    checkpoint = read_checkpoint(path, option)
    try:
        hyper_parameters = checkpoint["hyper_parameters"]
        task = Task.from_options(checkpoint["datamodule_hyper_parameters"] | {"moduli": hyper_parameters["moduli"]})
        sizes = {name: hyper_parameters[name] for name in MODEL_OPTIONS}
        require_memory_for(task.d_vocab, sizes, checkpoint["state_dict"])
        model = build_model(task.d_vocab, **sizes)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        reason = f"it lacks {error}{OF_ANOTHER_TASK}" if isinstance(error, KeyError) else error
        raise ValueError(f"{option}: {path} does not describe its task and model ({reason})") from None
    prefix = "model."
    weights = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items()}
    check_weights(path, weights, model, option)
    model.load_state_dict(weights)
    data = checkpoint["datamodule_hyper_parameters"]
    seed = hyper_parameters.get("seed_everything")
    return StoredModel(model.eval(), task, checkpoint["global_step"], seed, split_arguments(data))


def require_memory_for(d_vocab: int, sizes: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Make sure that a model of some sizes does not take more memory than a file that describes it can justify.

    Raises:
        ValueError: if the sizes ask for far more than the file holds.
    """
    n_layers, n_heads, d_model, d_mlp = (int(sizes[name]) for name in ("n_layers", "n_heads", "d_model", "d_mlp"))
    d_head = int(sizes["d_head"] or d_model // n_heads)
    needed = 2 * d_vocab * d_model + n_layers * d_model * (4 * n_heads * d_head + 2 * d_mlp)
    stored = sum(value.numel() for value in weights.values() if isinstance(value, torch.Tensor))
    if min(n_layers, n_heads, d_model, d_mlp, d_head) < 1 or needed > 10 * stored:  # what is missing is named later
        raise ValueError(f"sizes that need {needed} weights, where it holds {stored}")


def check_weights(path: Path, weights: Mapping[str, Any], model: torch.nn.Module, option: str = "ckpt_path") -> None:
    """Make sure that the weights of a checkpoint are those of such a model.

    Args:
        option: which names the file in errors.

    Raises:
        ValueError: naming the first that is missing, foreign, of another shape or not finite.
    """
    constants = dict(model.named_buffers())
    expected = model.state_dict()
    for name, tensor in expected.items():
        value = weights.get(name)
        if value is None:
            raise ValueError(f"{option}: {path} lacks the weight {name}")
        if not isinstance(value, torch.Tensor) or value.shape != tensor.shape:
            shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{option}: {path} has {name} in the shape {shape} instead of {list(tensor.shape)}")
        if name in constants and not torch.equal(value, tensor):
            raise ValueError(f"{option}: {path} has another {name}, which is the same in every such model")
        if name not in constants and not (value.is_floating_point() and value.isfinite().all()):
            raise ValueError(f"{option}: {path} has values in {name} that are not finite numbers")
    if foreign := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"{option}: {path} has {foreign[0]}, which is no weight of this model")
