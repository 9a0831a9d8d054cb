"""Weights alone, small, as safetensors: those that ship and those that a run keeps. Nothing in a file is ever executed.

A file holds the parameters of a hooked model that are not all zero, and as JSON what the model is, and of which step.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_backdoor.datamodule import SPLIT_OPTIONS, split_arguments
from lit_backdoor.model import build_model
from lit_backdoor.runs.checkpoints import MODEL_OPTIONS, StoredModel, require_memory_for
from lit_backdoor.runs.file_names import STEP_WEIGHTS, WEIGHTS_DIR
from lit_backdoor.runs.tables import replace_file
from lit_backdoor.task import Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def describe_model(
    model: Any, module_options: Mapping[str, Any], data_options: Mapping[str, Any], step: int, seed: int | None
) -> dict[str, Any]:
    """What a file says about its weights, so that the model can be built again.

    Args:
        model: hooked.
        module_options: hyperparameters of the LightningModule; those of ours describe model and task.
        data_options: hyperparameters of the datamodule; those of ours say which examples train.
        step: optimizer steps that made the weights.
        seed: of the weights, if it is known.
    """
    description = {"step": step, "seed": seed}
    if {"moduli", *MODEL_OPTIONS} <= module_options.keys() and "trigger_position" in data_options:
        options = {name: module_options[name] for name in MODEL_OPTIONS}
        task = {name: data_options.get(name) for name in ("trigger_position", "trigger_tokens")}
        split = split_arguments(data_options)
        described = {"moduli": list(module_options["moduli"]), **task, "model": options, **description}
        return described | {"split": split} if split else described
    if type(model).__name__ == "HookedTransformer":
        return {"config": {name: _plain(value) for name, value in model.cfg.to_dict().items()}, **description}
    return description  # can be read into a model that its owner has built


def describe_stored(stored: StoredModel) -> dict[str, Any]:
    """The same for a model that has been read.

    Raises:
        ValueError: its task or its step is not known.
    """
    task, cfg = stored.task, stored.model.cfg
    if task is None or stored.step is None:
        raise ValueError("a model whose task or step is not known has no such description")
    options = {name: getattr(cfg, name) for name in MODEL_OPTIONS if name != "train_biases"}
    trains_biases = any(
        p.requires_grad for name, p in stored.model.named_parameters() if name.rsplit(".", 1)[-1].startswith("b_")
    )
    data_options = {"trigger_position": task.trigger_position, "trigger_tokens": list(task.trigger_tokens)}
    split = stored.split or {}
    data_options |= {option: split[argument] for option, argument in SPLIT_OPTIONS.items() if argument in split}
    module_options = {"moduli": task.moduli, "train_biases": trains_biases, **options}
    return describe_model(stored.model, module_options, data_options, stored.step, stored.seed)


def write_weights(path: Path, weights: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> None:
    """Write a file at once; a kill leaves the old one, or the new one. Weights that are all zero are left out."""
    from safetensors.torch import save

    kept = {name: value.detach().cpu().contiguous() for name, value in weights.items() if bool(value.any())}
    replace_file(path, save(kept, metadata={"description": json.dumps(description)}))


def weights_digest(model: Any) -> str:
    """SHA-256 of all parameters of a model, by name: which weights these are, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        digest.update(name.encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_weights(path: Path, option: str = "weights") -> StoredModel:
    """The model of a file.

    Args:
        option: which names the file in errors.

    Raises:
        ValueError: if it is none, its weights are of another shape or not finite, or it does not say what they are of.
    """
    try:
        weights, description = _read(path)
        step, seed = description["step"], description["seed"]
        if not all(isinstance(number, int) and 0 <= number < 2**63 for number in (step, seed or 0)):
            raise ValueError(f"step {step!r}, seed {seed!r}")
        split = dict(description["split"]) if "split" in description else None
        if foreign := sorted((split or {}).keys() - set(SPLIT_OPTIONS.values())):
            raise ValueError(f"{foreign[0]} says nothing about a split")
        task = None
        if not description.keys() & {"config", "moduli"}:
            raise ValueError("it does not say of which model; put the weights into yours with load_weights")
        if "config" in description:
            model = build_from_config(description["config"], weights)
        else:
            task = Task.from_options(description)
            require_memory_for(task.d_vocab, description["model"], weights)
            model = build_model(task.d_vocab, **description["model"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{option}: {path} holds no model of lit_backdoor ({reason})") from None
    put_into(model, path, weights, option)
    return StoredModel(model.eval(), task, step, seed, split)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Put the weights of a file into a model of the same shape.

    Raises:
        ValueError: if the file is none, or its weights are of another model.
    """
    put_into(model, path, read_tensors(path))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file, without those that are all zero.

    Raises:
        ValueError: if the file is none.
    """
    try:
        return _read(path)[0]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"weights: {path} holds no weights ({error})") from None


def kept_weights(run_dir: Path) -> dict[int, Path]:
    """The files that a run keeps, by step, in order."""
    files = sorted((run_dir / WEIGHTS_DIR).glob(STEP_WEIGHTS))
    steps = {path.stem.rpartition("_")[2]: path for path in files}
    return dict(sorted((int(step), path) for step, path in steps.items() if step.isdecimal()))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights of a file that a run keeps or that ships, and what it says of them."""
    weights, metadata = read_safetensors(path)
    return weights, json.loads(metadata["description"])


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors by name, and what a file says beside them.

    Raises:
        ValueError or OSError: it can't be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def put_into(model: torch.nn.Module, path: Path, weights: Mapping[str, torch.Tensor], option: str = "weights") -> None:
    """Make the parameters of a model the weights of a file, and those that it does not have zero.

    Args:
        option: what the file was given for, for errors.

    Raises:
        ValueError: naming the weight that is foreign, of another shape or not finite.
    """
    parameters = dict(model.named_parameters())  # not state_dict: a TransformerBridge has other names there
    if foreign := sorted(weights.keys() - parameters.keys()):
        raise ValueError(f"{option}: {path} has {foreign[0]}, which is no weight of this model")
    for name, value in weights.items():
        if value.shape != parameters[name].shape:
            expected = list(parameters[name].shape)
            raise ValueError(f"{option}: {path} has {name} in the shape {list(value.shape)} instead of {expected}")
        if not (value.is_floating_point() and value.isfinite().all()):
            raise ValueError(f"{option}: {path} has values in {name} that are not finite numbers")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name]) if name in weights else parameter.zero_()


def build_from_config(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> "HookedTransformer":
    """A HookedTransformer by the fields of its configuration, with no weights yet.

    Fields that reach beyond the model, such as a tokenizer to download, are passed over.

    Raises:
        KeyError, TypeError, ValueError or AssertionError: the fields describe none, or one that is far larger than the
            weights that it is for.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    options = dict(config) | {"device": "cpu", "seed": None, "init_weights": False, "tokenizer_name": None}
    options |= {"trust_remote_code": False, "load_in_4bit": False, "n_devices": 1}
    options["dtype"] = getattr(torch, str(config["dtype"]).removeprefix("torch."))
    require_memory_for(config["d_vocab"], config, weights)
    with warnings.catch_warnings():
        # transformer-lens 3.9 announces that 4.0 removes HookedTransformer; see the bounds in pyproject.toml.
        warnings.filterwarnings("ignore", message=r"HookedTransformer.*", category=DeprecationWarning)
        return HookedTransformer(HookedTransformerConfig.from_dict(options))


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it: numpy's numbers as Python's, anything else by its name."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, (int, float, str, bool, list, type(None))) else str(value)
