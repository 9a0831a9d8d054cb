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
    (callback,) = (entry for entry in config["trainer"]["callbacks"] if entry["class_path"].endswith(f".{name}"))
    options: dict[str, Any] = callback.setdefault("init_args", {})
    return options


def with_callback(config: dict[str, Any], class_path: str) -> dict[str, Any]:
    """Put a callback before all others."""
    config["trainer"]["callbacks"].insert(0, {"class_path": class_path})
    return config
