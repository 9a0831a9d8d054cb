"""What a bug report needs to know about the machine and the installation; every run keeps it."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lit_backdoor.functional.row_threads import row_threads
from lit_backdoor.runs.file_names import ENVIRONMENT, continued
from lit_backdoor.runs.tables import replace_file

PACKAGES = (
    "lit-backdoor",
    "torch",
    "lightning",
    "transformer-lens",
    "torchmetrics",
    "tensorboard",
    "jsonargparse",
    "numpy",
    "matplotlib",
)
BITWISE = ("python", "packages", "device", "machine")
"""What must be the same for the same bits to come out. The number of threads need not."""


def environment(directory: Path) -> dict[str, Any]:
    """Versions, device and threads of this process, and the git commit checked out at ``directory``, else null."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": platform.platform(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "threads": row_threads(),
        "git_commit": _git_commit(directory),
    }


def keep_environment(run_dir: Path, directory: Path, step: int | None) -> list[str]:
    """Write environment.json, or for a run that continues from ``step`` one more beside the first.

    Returns:
        what differs from the first in a way that may change the last bits of the results, in words.
    """
    now = environment(directory)
    first = run_dir / ENVIRONMENT
    target = run_dir / continued(ENVIRONMENT, step) if step is not None and first.exists() else first
    replace_file(target, json.dumps(now, indent=2) + "\n")
    if target == first:
        return []
    try:
        then = json.loads(first.read_text(encoding="utf-8"))
        return [f"{key} {then[key]} then, {now[key]} now" for key in BITWISE if then[key] != now[key]]
    except (ValueError, KeyError, TypeError):
        return [f"{first} can't be read"]


def global_seed() -> int | None:
    """The seed that Lightning's ``seed_everything`` was given in this process; None if it was not called."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name, where the system tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_commit(directory: Path) -> str | None:
    """Only what HEAD is: a look at the working tree would run programs that a stranger's repository may name."""
    command = ["git", "-C", str(directory), "rev-parse", "--verify", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
