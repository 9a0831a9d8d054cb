"""Values that the parser and Lightning let through, only to fail after a run directory has been made, or to train on
nothing."""

import math
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, get_args, get_type_hints

from lit_backdoor.limits import in_words

Check = Callable[[Any], bool]

LIMITS: Mapping[str, tuple[Check, str]] = {
    "max_epochs": (lambda value: value == -1 or value > 0, "1 or more, or -1 for no limit"),
    "max_steps": (lambda value: value >= -1, "1 or more, or -1 for no limit"),
    "min_epochs": (lambda value: value >= 0, "0 or more"),
    "min_steps": (lambda value: value >= 0, "0 or more"),
    "log_every_n_steps": (lambda value: value >= 0, "0 or more; 0 logs no training loss"),
    "check_val_every_n_epoch": (lambda value: value > 0, "1 or more, or null to count validation in steps"),
    "accumulate_grad_batches": (lambda value: value > 0, "1 or more"),
    "num_sanity_val_steps": (lambda value: value >= -1, "0 or more, or -1 for all"),
    "limit_train_batches": (lambda value: value > 0, "above 0"),
    "gradient_clip_val": (lambda value: 0 <= value < math.inf, "0 or more"),
    "num_nodes": (lambda value: value == 1, "1, since all examples are one batch"),
}


def refuse_nulls(group: str, options: Mapping[str, Any], takes: Callable[..., Any]) -> None:
    """Make sure that no option is null that may not be: the parser lets null pass for every type.

    Args:
        group: what the options are called together: "data", "model", "trainer", or a class that a config names.
        takes: what they are passed to, with its types.

    Raises:
        ValueError: naming the option.
    """
    for name, kind in get_type_hints(takes).items():
        if name in options and options[name] is None and type(None) not in get_args(kind):
            raise ValueError(f"{group}.{name}: null is not allowed; allowed: {in_words(kind)}")


def refuse_nulls_of_classes(trainer: Mapping[str, Any]) -> None:
    """The same for the callbacks and the logger, which a configuration names by class.

    Raises:
        ValueError: naming the class and the option.
    """
    loggers = [] if isinstance(trainer["logger"], bool) else trainer["logger"]
    for instance in [*as_list(loggers), *as_list(trainer["callbacks"])]:
        module, _, name = instance["class_path"].rpartition(".")
        owner: Any = getattr(import_module(module), name)  # the parser has imported it already
        refuse_nulls(name, instance.get("init_args") or {}, owner.__init__)


def as_list(value: Any) -> list[Any]:
    """An option that takes one value or a list of them, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Make sure that Lightning can train with these options of ``trainer``.

    Raises:
        ValueError: naming the first that is wrong, its value, and what is allowed.
    """
    for name, (allows, allowed) in LIMITS.items():
        value = options.get(name)
        if isinstance(value, (int, float)) and not allows(value):
            raise ValueError(f"trainer.{name}: {value} is not allowed; {allowed}")
    max_time = options.get("max_time")
    if isinstance(max_time, str) and not re.fullmatch(r"\d+(:\d\d){3}", max_time):
        raise ValueError(f"trainer.max_time: '{max_time}' is not allowed; DD:HH:MM:SS, such as 00:12:00:00")
    interval = options.get("val_check_interval")
    if isinstance(interval, (int, float)) or interval is None:
        by_step = options.get("check_val_every_n_epoch") is None
        whole = isinstance(interval, int) and interval > 0
        share = isinstance(interval, float) and 0 < interval <= 1 and not by_step
        if not (whole or share or (interval is None and not by_step)):
            allowed = "optimizer steps, 1 or more" if by_step else "steps, 1 or more, or a share of an epoch, in (0, 1]"
            raise ValueError(f"trainer.val_check_interval: {interval} is not allowed; {allowed}, or a time")
    if not _is_one_device(options.get("devices")):
        raise ValueError(
            f"trainer.devices: {options['devices']} is not allowed; all examples are one batch on one device: "
            "1, auto, or the index of one GPU in a list, such as [0]"
        )


def _is_one_device(devices: Any) -> bool:
    """Whether Lightning would use one device, as far as that can be told without asking the machine."""
    if isinstance(devices, list):
        return len(devices) == 1
    return devices in (None, 1, "auto") or bool(re.fullmatch(r"1|\d+,", str(devices)))
