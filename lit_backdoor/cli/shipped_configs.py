"""Where the shipped configurations are."""

import sysconfig
from pathlib import Path


def shipped_config(name: str) -> Path:
    """The file of a shipped configuration: ``configs/`` of the clone, or of the installed package.

    Raises:
        ValueError: if there is none of that name.
    """
    places = (
        Path(__file__).parents[2] / "configs",
        Path(sysconfig.get_path("data"), "share", "lit_backdoor", "configs"),
    )
    for place in places:
        if (path := place / f"{name}.yaml").is_file():
            return path
    raise ValueError(f"config: {name}.yaml is in none of {', '.join(map(str, places))}; install lit_backdoor again")
