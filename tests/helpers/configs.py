"""Shipped configurations, to change."""

from pathlib import Path
from typing import Any

import yaml

from tests.helpers import CONFIGS


def load_config(name: str = "debug") -> dict[str, Any]:
    """A shipped configuration as a dictionary."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return config


def save_config(config: dict[str, Any], path: Path) -> Path:
    """Write a configuration and return its path."""
    path.write_text(yaml.safe_dump(config))
    return path


def callback_options(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The options of the callback of that class, to change in place."""
    from lit_backdoor.cli.named_callbacks import NAMED_CALLBACKS

    (path,) = (path for path, kind in NAMED_CALLBACKS.items() if kind.__name__ == name)
    options = config
    for part in path.split("."):
        options = options.setdefault(part, {})
    return options


def with_callback(config: dict[str, Any], class_path: str, **options: Any) -> dict[str, Any]:
    """List one more callback, beside those with names."""
    config["trainer"].setdefault("callbacks", []).append({"class_path": class_path, "init_args": options})
    return config
