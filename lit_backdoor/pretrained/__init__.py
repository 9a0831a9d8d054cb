"""Trained weights: those that ship with the package, here, and other people's. Nothing in a file is ever executed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_backdoor.runs.file_names import EXPORTED_WEIGHTS
from lit_backdoor.runs.weights import StoredModel, describe_model, read_weights, write_weights

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FOLDER = Path(__file__).parent


def pretrained_names() -> list[str]:
    """The names that :func:`load_pretrained` takes."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load_pretrained(name: str | Path) -> "HookedTransformer":
    """A trained model that ships with the package, or that ``analyze --export`` has written.

    It is in evaluation mode, on the CPU. Tokens are [n, 3]: a, b, and the trigger, where the task does not say
    otherwise 0 or 1; the answer is read at the last position.

    Args:
        name: ``clean``, or ``mod1``, ``mod7``, ``mod17``, ``mod37`` for the backdoor with that P1; or the folder of an
            export.

    Raises:
        ValueError: if there is no such model.
    """
    return open_pretrained(name).model


def open_pretrained(name: str | Path) -> StoredModel:
    """The same with its task, step and seed; see :func:`load_pretrained`."""
    if name not in pretrained_names() and (path := Path(name) / EXPORTED_WEIGHTS).is_file():
        return read_weights(path)
    return open_shipped(name, ", or a folder that analyze --export has written")


def open_shipped(name: object, or_else: str = "") -> StoredModel:
    """A model that ships, with its task, step and seed.

    Args:
        name: as for :func:`load_pretrained`.
        or_else: what else would have been allowed, for the error.

    Raises:
        ValueError: if there is no such model.
    """
    names = pretrained_names()
    if name not in names:
        raise ValueError(f"pretrained: '{name}' is none of the models that ship; allowed: {', '.join(names)}{or_else}")
    return read_weights(FOLDER / f"{name}.safetensors")


def save_pretrained(checkpoint: dict[str, Any], seed: int, path: Path) -> None:
    """Write the weights of a checkpoint of ``fit``; what is all zero, as biases that are not trained, is left out.

    Args:
        checkpoint: from :func:`lit_backdoor.runs.checkpoints.read_checkpoint`.
        seed: of its run.
        path: a new .safetensors file.
    """
    options, data_options = checkpoint["hyper_parameters"], checkpoint["datamodule_hyper_parameters"]
    description = describe_model(None, options, data_options, checkpoint["global_step"], seed)
    named = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    parameters = {name: value for name, value in named.items() if name.rsplit(".", 1)[-1][:2] in ("W_", "b_")}
    write_weights(path, parameters, description)
