"""Reading checkpoint files: what is in them, and a clear word about what is wrong with them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule

from lit_backdoor.datamodule import SPLIT_OPTIONS
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
SCHEDULED = {"lr", "momentum", "betas"}
"""Options of an optimizer that a schedule changes while it trains."""
REQUIRED = ("state_dict", "global_step", "hyper_parameters", "datamodule_hyper_parameters")


@dataclass(frozen=True)
class StoredModel:
    """A model and where it comes from.

    Attributes:
        model: in evaluation mode, on the CPU.
        task: what it was trained on; None for a task that is not ours.
        step: optimizer steps that made the weights; None if it is not known.
        seed: of the weights; None if it is not known.
        split: arguments of :func:`lit_backdoor.task.split_examples` that say which examples trained; empty for the
            default, as that of the models that ship.
        reading: of a file from elsewhere: its layout, what in it was left out, and what was assumed.
    """

    model: "HookedTransformer"
    task: Task | None
    step: int | None
    seed: int | None
    split: Mapping[str, Any] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint that ``fit`` wrote, on the CPU; nothing in the file is executed.

    Raises:
        ValueError: in one line, if the file is missing, unreadable or not such a checkpoint; with an earlier one of the
            same run, if there is one that can be read.
    """
    try:
        return _read(path)
    except ValueError as error:
        for candidate in _earlier(path):
            try:
                step = _read(candidate)["global_step"]
            except ValueError:
                continue
            raise ValueError(f"{error}; the one before it is whole: --ckpt_path {candidate} (step {step})") from None
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


def _read(path: Path) -> dict[str, Any]:
    checkpoint = read_torch_file(path, "ckpt_path")
    missing = [key for key in REQUIRED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ValueError(f"ckpt_path: {path} is not a checkpoint of lit_backdoor fit; it lacks {', '.join(missing)}")
    step = checkpoint["global_step"]
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"ckpt_path: {path} is at step {step!r}, which is no number of optimizer steps")
    for key in REQUIRED:
        if key != "global_step" and not isinstance(checkpoint[key], dict):
            raise ValueError(f"ckpt_path: {path} holds {type(checkpoint[key]).__name__} as {key}, no mapping")
    return checkpoint


def _earlier(path: Path) -> list[Path]:
    """The other checkpoints beside a last.ckpt, newest first."""
    if path.name != LAST or not path.is_file():
        return []
    candidates = [path.with_name(PREVIOUS), *sorted(path.parent.glob(STEP_CHECKPOINTS), reverse=True)]
    return [candidate for candidate in candidates if candidate.is_file()]


def load_model(path: Path) -> StoredModel:
    """The model of a checkpoint.

    Raises:
        ValueError: in one line, if the file is not such a checkpoint, or its weights are missing, of another shape,
            or not finite.
    """
    checkpoint = read_checkpoint(path)
    try:
        hyper_parameters = checkpoint["hyper_parameters"]
        task = Task.from_options(checkpoint["datamodule_hyper_parameters"] | {"moduli": hyper_parameters["moduli"]})
        sizes = {name: hyper_parameters[name] for name in MODEL_OPTIONS}
        require_memory_for(task.d_vocab, sizes, checkpoint["state_dict"])
        model = build_model(task.d_vocab, **sizes)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"ckpt_path: {path} does not describe its task and model ({error})") from None
    prefix = "model."
    weights = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items()}
    check_weights(path, weights, model)
    model.load_state_dict(weights)
    data = checkpoint["datamodule_hyper_parameters"]
    split = {argument: data[option] for option, argument in SPLIT_OPTIONS.items() if option in data}
    return StoredModel(model.eval(), task, checkpoint["global_step"], hyper_parameters.get("seed_everything"), split)


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


def check_weights(path: Path, weights: Mapping[str, Any], model: torch.nn.Module) -> None:
    """Make sure that the weights of a checkpoint are those of such a model.

    Raises:
        ValueError: naming the first that is missing, foreign, of another shape or not finite.
    """
    constants = dict(model.named_buffers())
    expected = model.state_dict()
    for name, tensor in expected.items():
        value = weights.get(name)
        if value is None:
            raise ValueError(f"ckpt_path: {path} lacks the weight {name}")
        if not isinstance(value, torch.Tensor) or value.shape != tensor.shape:
            shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"ckpt_path: {path} has {name} in the shape {shape} instead of {list(tensor.shape)}")
        if name in constants and not torch.equal(value, tensor):
            raise ValueError(f"ckpt_path: {path} has another {name}, which is the same in every such model")
        if name not in constants and not (value.is_floating_point() and value.isfinite().all()):
            raise ValueError(f"ckpt_path: {path} has values in {name} that are not finite numbers")
    if foreign := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"ckpt_path: {path} has {foreign[0]}, which is no weight of this model")


def check_training_state(
    path: Path, checkpoint: Mapping[str, Any], module: LightningModule, callbacks: Sequence[Callback]
) -> None:
    """Make sure, before anything is written, that training can continue from a checkpoint with sound weights.

    Raises:
        ValueError: naming what is missing or foreign: the optimizer's state, the loops' progress, a callback's state.
    """
    try:
        (state,) = checkpoint["optimizer_states"]
        _check_optimizer(state, len(checkpoint["lr_schedulers"]), module, checkpoint["global_step"])
        loop = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
        done = loop["optimizer"]["step"]["total"]["completed"]
        if done != checkpoint["global_step"]:
            raise ValueError(f"{done} optimizer steps in its loops, {checkpoint['global_step']} as global_step")
        for callback in callbacks:
            if (own := checkpoint["callbacks"].get(callback.state_key)) is not None:
                copy.deepcopy(callback).load_state_dict(own)
        checkpoint["epoch"]
    except Exception as error:  # a stranger's file may hold anything in any place
        told = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"ckpt_path: {path} can't be continued from; its training state is broken ({told})") from None


def _check_optimizer(state: Mapping[str, Any], n_schedules: int, module: LightningModule, step: int) -> None:
    """Compare the stored state of an optimizer with the optimizer that the module has.

    Args:
        n_schedules: How many schedules of the learning rate are stored.
        step: Optimizer steps that the state has behind it.

    Raises:
        ValueError: naming what differs, or is not finite.
    """
    configured: Any = module.configure_optimizers()
    optimizer, scheduled = (configured["optimizer"], 1) if isinstance(configured, dict) else (configured, 0)
    if n_schedules != scheduled:
        raise ValueError(f"it has {n_schedules} schedules of the learning rate instead of {scheduled}")
    (expected,), (group,) = optimizer.state_dict()["param_groups"], state["param_groups"]
    if foreign := sorted(group.keys() - expected.keys()):
        raise ValueError(f"{foreign[0]} is no option of {type(optimizer).__name__}")
    for key in sorted(group.keys() - {"params"} - (SCHEDULED if scheduled else set())):
        if _plain(group[key]) != _plain(expected[key]):
            raise ValueError(f"{key} of the optimizer is {group[key]} instead of {expected[key]}")
    parameters = optimizer.param_groups[0]["params"]
    if list(group["params"]) != list(range(len(parameters))):
        raise ValueError("the optimizer is for other parameters")
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    averages = ("exp_avg", "exp_avg_sq") if isinstance(optimizer, torch.optim.Adam) else ()  # AdamW is an Adam
    for index, parameter in enumerate(parameters if step else ()):
        if not parameter.requires_grad:
            continue
        stored = state["state"][index] if averages else state["state"].get(index, {})
        tensors = {key: value for key, value in stored.items() if isinstance(value, torch.Tensor)}
        for key, value in (tensors | {average: stored[average] for average in averages}).items():
            if not value.isfinite().all() or (key in averages and value.shape != parameter.shape):
                raise ValueError(f"{key} of {names[id(parameter)]} has another shape or values that are not finite")


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
