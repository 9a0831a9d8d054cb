"""The configurations that ship, found by name."""

from pathlib import Path

import lit_backdoor
from lit_backdoor.cli.error_messages import suggestion
from lit_backdoor.cli.parser import given_path

PACKAGE = Path(lit_backdoor.__file__).parent
CLONE = PACKAGE.parent
FOLDER = CLONE / "configs" if (CLONE / "pyproject.toml").is_file() else PACKAGE / "configs"
"""Beside the package in a clone, inside it where it was installed from a wheel."""


def shipped_configs() -> dict[str, Path]:
    """The files of all shipped configurations, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_config(given: str) -> Path:
    """The file of a configuration, given by its path or by the name of one that ships.

    Raises:
        ValueError: if it is neither, with the names that ship, or no path at all.
    """
    shipped = shipped_configs()
    path = given_path("config", given)
    if path.is_file():
        return path
    if given not in shipped:
        raise ValueError(
            f"config: '{given[:80]}' is not a file, nor the name of a shipped configuration"
            f"{suggestion(given, shipped)}; allowed: a path, {', '.join(shipped)}"
        )
    return shipped[given]
