"""Configurations of earlier versions: options that no longer exist are left out, and that is said."""

from pathlib import Path
from typing import Any

import yaml

RETIRED = {
    "EmergenceMonitor": ("grokked",),
    "LossSpikeMonitor": ("rise", "window"),
}
"""Options that callbacks had in version 0.1, by class: they changed how a run is judged, not how it trains."""


def readable_config(path: Path, notes: list[str]) -> str:
    """What to give to the parser for a configuration: its path, or its content without retired options.

    Args:
        notes: Gets a line for the user if options are left out.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = [entry for entry in config["trainer"]["callbacks"] if isinstance(entry.get("init_args"), dict)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError):
        return str(path)  # there is no such list, or the parser says what is wrong
    left_out = [name for entry in entries for name in _drop_retired(entry)]
    if not left_out:
        return str(path)
    notes.append(f"{path}: {', '.join(left_out)} are options of an earlier version, which have no effect now")
    return yaml.safe_dump(config, default_flow_style=True, width=float("inf"))


def _drop_retired(entry: dict[str, Any]) -> list[str]:
    kind = str(entry.get("class_path")).rpartition(".")[2]
    return [f"{kind}.{name}" for name in RETIRED.get(kind, ()) if entry["init_args"].pop(name, None) is not None]
