"""Weights from elsewhere, read into a HookedTransformer. Nothing in a file is ever executed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_backdoor.pretrained.layouts import BUFFERS, PARTS, Layout, as_transformer_lens, sizes_of
from lit_backdoor.runs.checkpoints import MODEL_OPTIONS, StoredModel, load_model, read_torch_file
from lit_backdoor.runs.weights import build_from_config, put_into, read_safetensors, read_weights

EMBEDDING = "embed.W_E"
"""Where this is, there is a model."""


def open_weights(path: Path, option: str, layout: Layout, config: Mapping[str, Any], of_pairs: bool) -> StoredModel:
    """The model in a file of weights: a state dict, alone or with other things around and beside it.

    Files that this package wrote say themselves what they are.

    Args:
        path: as PyTorch saves, or as safetensors if the name ends so.
        option: which names the file in errors.
        layout: how the weights are stored; ``auto`` looks at their shapes.
        config: fields of HookedTransformerConfig. What the shapes say need not be there.
        of_pairs: whether the model answers pairs a and b at the last position. Then its MLP is taken to be of ReLUs
            where ``config`` does not say another, as those of all papers on such models, and with one layer it makes
            no difference whether it is causal.

    Raises:
        ValueError: in one line, naming the option: the file is missing or unreadable, holds no model or several, a
            weight is missing, foreign, of another shape or not finite, or something has to be said in ``config``.
    """
    if not path.is_file():
        raise ValueError(f"{option}: '{path}' is not a file; give weights, as .pt, .pth or .safetensors")
    if (content := _read(path, option)) is None:
        return read_weights(path, option) if path.suffix == ".safetensors" else load_model(path, option)
    try:
        named, left_out = find_weights(content)
        weights, found = as_transformer_lens(named, layout)
        fields = sizes_of(weights)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith("layout:") else f"{option}: {path}: {message}") from None
    usual = {"act_fn": "relu"} if of_pairs and not fields["attn_only"] else {}
    if of_pairs and fields["n_layers"] == 1:
        usual["attention_dir"] = "causal"
    fields = fields | usual | dict(config)
    asked = ["attention_dir", *(["act_fn"] if not fields["attn_only"] else [])]
    asked += ["n_ctx", "positional_embedding_type"] if "n_ctx" not in fields else []
    if missing := [name for name in asked if name not in fields]:
        raise ValueError(
            f"config: {path} does not say {' and '.join(missing)}; give a YAML file with these fields of "
            "HookedTransformerConfig, --config model.yaml; what the shapes of the weights say need not be in it"
        )
    try:
        model = build_from_config(fields, weights)
    except Exception as error:  # TransformerLens checks its fields with assertions, look-ups and arithmetic
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"config: no model can be built of these fields and {path} ({reason})") from None
    for name, _ in model.named_parameters():
        if name not in weights and not name.rpartition(".")[2].startswith("b"):  # biases that are not there are 0
            raise ValueError(f"{option}: {path} lacks the weight {name}")
    put_into(model, path, weights, option)
    step = content.get("global_step") if isinstance(content, Mapping) else None
    assumed = {name: value for name, value in usual.items() if name not in config and name != "attention_dir"}
    reading = {"layout": found, "left_out": left_out, "assumed": assumed}
    return StoredModel(model.eval(), None, step if isinstance(step, int) else None, None, reading=reading)


def _read(path: Path, option: str) -> Any:
    """What a file holds; None if this package wrote it."""
    if path.suffix != ".safetensors":
        content = read_torch_file(path, option)
        options = content.get("hyper_parameters") if isinstance(content, Mapping) else None
        return None if isinstance(options, Mapping) and {"moduli", *MODEL_OPTIONS} <= options.keys() else content
    try:
        weights, metadata = read_safetensors(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}: {path} can't be read as safetensors ({error})") from None
    description = metadata.get("description", "")
    return None if description.startswith("{") and '"step"' in description else weights


def find_weights(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of the one model in what a file holds, without what stands before their names; and what is left out.

    Raises:
        ValueError: there is none, or more than one; or a part of the model that is not known.
    """
    places = list(_models_in(content))
    if len(places) != 1:
        names = (".".join(map(str, (*where, start))).rstrip(".") or "the top" for where, start in places)
        several = f"several models, at {', '.join(names)}"
        what = several if places else f"no model: no weight in it is called {EMBEDDING}"
        raise ValueError(f"it holds {what}; save the state dict of one HookedTransformer by itself")
    ((where, start),) = places
    left_out, inside = [], content
    for key in where:
        left_out += [str(other) for other in _by_key(inside) if other != key]
        inside = inside[key]
    weights: dict[str, Tensor] = {}
    for name, value in _by_key(inside).items():
        short = str(name).removeprefix(start)
        if not str(name).startswith(start) or short.split(".")[0] not in PARTS or not isinstance(value, Tensor):
            left_out.append(str(name))
        elif short.rpartition(".")[2] not in BUFFERS:
            weights[short] = value
    return weights, left_out


def _models_in(content: Any) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Where models are: the keys that lead to their mapping, and what their weights' names begin with.

    What a file holds may contain itself, or lie deeper than Python recurses; nothing is entered twice.
    """
    seen: set[int] = set()
    ahead: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while ahead:
        where, inside = ahead.pop()
        by_key = _by_key(inside)
        for key in by_key:
            if str(key) == EMBEDDING or str(key).endswith(f".{EMBEDDING}"):
                yield where, str(key).removesuffix(EMBEDDING)
        if id(inside) not in seen:
            ahead += [((*where, key), value) for key, value in by_key.items()][::-1]
        seen.add(id(inside))


def _by_key(content: Any) -> Mapping[Any, Any]:
    """What a mapping holds, or a list of mappings; nothing for anything else."""
    if isinstance(content, (list, tuple)):
        return dict(enumerate(content)) if any(isinstance(each, Mapping) for each in content) else {}
    return content if isinstance(content, Mapping) else {}
