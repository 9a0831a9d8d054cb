"""Whether what a folder holds already is the run that is asked for."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_backdoor.runs.file_names import HPARAMS
from lit_backdoor.runs.stored import config_files, load
from lit_backdoor.sweep.plan import PlannedRun
from lit_backdoor.sweep.run_options import training_options, watching_options


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


def watched_otherwise(runs: Sequence[PlannedRun]) -> str:
    """A note on those of some finished runs that were watched with other options than are asked for; blank if none was.

    They were done before, and a finished run is left alone.

    Raises:
        ValueError: naming the file that can't be read.
    """
    differing = []
    for run in runs:
        for config in config_files(run.run_dir)[-1:]:
            stored = _read(config, watching_options)
            names = [name for name, value in run.watching.items() if name in stored and stored[name] != value]
            differing += names[:1]
    if not differing:
        return ""
    count = "1 run was" if len(differing) == 1 else f"{len(differing)} runs were"
    return f"note: {count} done before, with another {differing[0]}; replay measures a finished run again"


def _read(path: Path, options: Callable[[Any], dict[str, Any]] = dict) -> dict[str, Any]:
    try:
        return options(load(path))
    except (AttributeError, KeyError, TypeError, ValueError, OSError):
        raise ValueError(f"output_dir: {path} holds no options of a run; use another folder") from None
