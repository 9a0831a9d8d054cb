"""Whether what a folder holds already is the run that is asked for."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_backdoor.runs.file_names import HPARAMS
from lit_backdoor.runs.stored import config_files, load
from lit_backdoor.sweep.plan import PlannedRun, training_options


def require_same_options(runs: Sequence[PlannedRun]) -> None:
    """Make sure that what the runs' folders hold already was made with the same options, as far as they change it.

    Compared are task, model, seed and `training_options`, at every start of the run.

    Raises:
        ValueError: naming the first option that differs, or the file that can't be read.
    """
    for run in runs:
        path = run.run_dir / HPARAMS
        if not path.is_file():
            continue
        asked = {name: value for name, value in json.loads(json.dumps(run.hparams)).items() if name != "last_position"}
        pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [(asked, _read(path))]
        pairs += [(run.training, _read(config, training_options)) for config in config_files(run.run_dir)]
        for wanted, stored in pairs:
            for option, value in wanted.items():
                if option in stored and stored[option] != value:  # else an older version had no such option
                    raise ValueError(
                        f"output_dir: {run.run_dir} holds a run with {option} {stored[option]}, where {value} is asked "
                        "for; use another folder, or the run's own options"
                    )


def _read(path: Path, options: Callable[[Any], dict[str, Any]] = dict) -> dict[str, Any]:
    try:
        return options(load(path))
    except (AttributeError, KeyError, TypeError, ValueError, OSError):
        raise ValueError(f"output_dir: {path} holds no options of a run; use another folder") from None
