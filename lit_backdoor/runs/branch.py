"""A branch: a run that leaves another one at a checkpoint, and lies beside it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_backdoor.runs.file_names import BRANCH
from lit_backdoor.runs.tables import replace_file


@dataclass(frozen=True)
class Branch:
    """Where a branch comes from; ``branch.json`` in its directory.

    Attributes:
        name: given with ``--branch``.
        parent: folder of the run that it leaves, beside its own.
        step: optimizer steps that both have in common.
    """

    name: str
    parent: str
    step: int

    def write(self, run_dir: Path) -> None:
        """Say in ``run_dir`` that it is this branch."""
        replace_file(run_dir / BRANCH, json.dumps(asdict(self), indent=2) + "\n")


def read_branch(run_dir: Path) -> Branch | None:
    """What branch a run is; None if it is none.

    Raises:
        ValueError: in one line, if ``branch.json`` is damaged.
    """
    path = run_dir / BRANCH
    if not path.is_file():
        return None
    try:
        branch = Branch(**json.loads(path.read_text(encoding="utf-8")))
        if not (isinstance(branch.name, str) and isinstance(branch.parent, str) and type(branch.step) is int):
            raise ValueError("a value is of the wrong kind")
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not say where the branch comes from ({error})") from None
    return branch
