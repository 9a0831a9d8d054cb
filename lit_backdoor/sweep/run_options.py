"""What the options of a run change: how it trains, or how it is watched."""

import json
from collections.abc import Mapping
from inspect import signature
from typing import Any

from lit_backdoor.callbacks import HeadClamp

CLAMP_OPTIONS = {name: option.default for name, option in signature(HeadClamp).parameters.items()}
"""Those of a clamp, with their defaults: what is not given is not stored."""

TRAINER_OPTIONS = (
    *("precision", "limit_train_batches", "overfit_batches"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
)
"""Those of ``trainer`` that change how a run trains."""
ONLY_WATCH = ("Monitor", "Checkpoint", "ProgressBar", "Summary")
"""What the names of callbacks end with that change nothing in training."""


def training_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What changes how a run trains, beside the options in hparams.yaml; of older versions what they had.

    Args:
        config: complete options of ``fit``, as in config.yaml.
    """
    trainer = config.get("trainer") or {}
    acting = [each for each in trainer.get("callbacks") or [] if not str(each["class_path"]).endswith(ONLY_WATCH)]
    clamp = config.get("clamp")
    chosen = {name: config.get(name) for name in ("optimizer", "lr_scheduler")}
    chosen |= {f"clamp.{name}": clamp and clamp.get(name, default) for name, default in CLAMP_OPTIONS.items()}
    chosen |= {f"trainer.{name}": trainer[name] for name in TRAINER_OPTIONS if name in trainer}
    plain: dict[str, Any] = json.loads(json.dumps(chosen | {"trainer.callbacks": acting}, default=str))
    return plain


def watching_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured and kept of a run: by callback whether it is there, and by option its value.

    Args:
        config: complete options of ``fit``, as in config.yaml.
    """
    callbacks = {f"monitors.{name}": options for name, options in (config.get("monitors") or {}).items()}
    callbacks |= {name: config[name] for name in ("weights", "checkpoint") if name in config}
    watching: dict[str, Any] = {}
    for name, options in callbacks.items():
        watching[name] = options is not None
        watching |= {f"{name}.{option}": value for option, value in (options or {}).items()}
    plain: dict[str, Any] = json.loads(json.dumps(watching, default=str))
    return plain
