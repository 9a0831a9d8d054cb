"""The configurations that ship, found by name."""

from pathlib import Path

import lit_backdoor
from lit_backdoor.cli.error_messages import suggestion

PACKAGE = Path(lit_backdoor.__file__).parent
PLACES = (PACKAGE / "configs", PACKAGE.parent / "configs")
"""In the package, where a wheel has them; and in a clone, on systems without symbolic links."""


def shipped_configs() -> dict[str, Path]:
    """The files of all shipped configurations, by name."""
    return {path.stem: path for place in reversed(PLACES) for path in sorted(place.glob("*.yaml"))}


def find_config(given: str) -> Path:
    """The file of a configuration, given by its path or by the name of one that ships.

    Raises:
        ValueError: if it is neither, with the names that ship.
    """
    shipped = shipped_configs()
    if Path(given).is_file() or given not in shipped:
        path = Path(given)
        if path.is_file():
            return path
        raise ValueError(
            f"config: '{given[:80]}' is not a file, nor the name of a shipped configuration"
            f"{suggestion(given, shipped)}; allowed: a path, {', '.join(shipped)}"
        )
    return shipped[given]
