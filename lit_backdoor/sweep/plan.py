"""Which runs a sweep consists of, and where each of them lives."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from lit_backdoor.runs.directory import require_plain_name
from lit_backdoor.runs.file_names import CHECKPOINT_DIR, LAST
from lit_backdoor.sweep.run_options import training_options, watching_options

JOBS_DIR = "jobs"
"""The folder of a sweep in which its jobs leave their output."""

MOST_SEEDS = 10_000

OWN_OPTIONS = ("seed_everything", "ckpt_path", "branch", "config", "help", "print_config", "trainer")
"""Options of fit that a sweep gives itself, that are none of a run, or that would hide such (the whole of trainer)."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of ``fit``, in a directory of its own.

    Attributes:
        name: the folder of its group, such as ``mod1``, and its seed: ``mod1/seed_0``.
        run_dir: where it lives, absolute.
        options: the arguments of ``fit``, without ``--ckpt_path``.
        max_steps: optimizer steps until it is done.
        hparams: the options of its task and model, and its seed, as in hparams.yaml.
        training: what else changes how it trains, see `training_options`.
        watching: what is measured and kept of it meanwhile, see `watching_options`.
        beginning: more arguments, with which it begins where there is nothing to continue from.
    """

    name: str
    run_dir: Path
    options: tuple[str, ...]
    max_steps: int
    hparams: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    watching: Mapping[str, Any] = field(default_factory=dict)
    beginning: tuple[str, ...] = ()

    @property
    def n_rules(self) -> int:
        """Rules of its task; a step's cost goes with it."""
        return len(self.hparams["moduli"])

    @property
    def last_checkpoint(self) -> Path:
        """What it is continued from, where that exists."""
        return self.run_dir / CHECKPOINT_DIR / LAST

    def arguments(self) -> list[str]:
        """The arguments of ``lit_backdoor`` that start the run, or continue it from its last checkpoint."""
        continued = ("--ckpt_path", str(self.last_checkpoint)) if self.last_checkpoint.exists() else self.beginning
        return ["fit", *self.options, *continued]


def parse_seeds(text: str, option: str = "seeds") -> list[int]:
    """Read ``0..9``, ``3``, or several of them joined by commas.

    Args:
        option: what they are given for, for the error.

    Raises:
        ValueError: the text is none of these, a range is empty, or a seed comes twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})(?:\.\.(\d{1,20}))?\s*", part)
        if not match:
            raise ValueError(f"{option}: '{text[:40]}' is no list of seeds; write 0..9, or 0,3,7")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise ValueError(f"{option}: '{part.strip()}' is empty; the first seed comes first, as in {last}..{first}")
        if last >= 2**32:
            raise ValueError(f"{option}: {last} is too large; a seed is below 2**32")
        if len(seeds) + last - first >= MOST_SEEDS:
            raise ValueError(f"{option}: '{text[:40]}' are more than {MOST_SEEDS} seeds; allowed: {MOST_SEEDS} at most")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{option}: '{text}' names a seed twice; each once")
    return seeds


def parse_settings(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``data.moduli=[[113,1],[113,7]]`` to the values that each option takes; a single value is a list of one.

    Raises:
        ValueError: if a text is not ``option=values``, an option comes twice or belongs to the sweep itself.
    """
    settings: dict[str, list[Any]] = {}
    for text in texts:
        option, equals, values = text.partition("=")
        option = option.lstrip("-")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", option):
            raise ValueError(f"set: '{text}' is not OPTION=[VALUE,...], such as data.moduli=[[113,1],[113,7]]")
        if option in OWN_OPTIONS or option.startswith("trainer.logger"):
            raise ValueError(
                f"set: {option} belongs to the sweep; allowed: single options of data, model and trainer (seeds are "
                "given with --seeds, folders are the sweep's own)"
            )
        if option in settings:
            raise ValueError(f"set: {option} is given twice; put all its values into one list")
        try:
            parsed = yaml.safe_load(values)
            json.dumps(parsed)
        except (yaml.YAMLError, TypeError, RecursionError):
            raise ValueError(
                f"set: the values of {option}, '{values[:80]}', are no YAML of numbers, texts and lists"
            ) from None
        settings[option] = parsed if isinstance(parsed, list) else [parsed]
        if not settings[option]:
            raise ValueError(f"set: {option}=[] has no values; give at least one")
    return settings


def plan_runs(
    config: Path,
    seeds: Sequence[int],
    settings: dict[str, list[Any]],
    runs_dir: Path,
    check_options: Callable[[Sequence[str]], Namespace],
) -> list[PlannedRun]:
    """All runs of one configuration: every combination of ``settings``, with every seed.

    The options of every combination are checked as ``fit`` checks them, without writing anything.

    Args:
        check_options: takes the arguments of a ``fit`` and returns its complete options; exits with 2 if one is wrong.

    Raises:
        ValueError: if the configuration is not a file, its name can't be a folder's, two combinations would share a
            folder, or a run would not end by its optimizer steps alone.
        SystemExit: with 2, after one line on stderr, if ``fit`` would refuse an option.
    """
    if not config.is_file():
        raise ValueError(f"config: {config} is not a file; give a configuration, such as configs/mod1.yaml")
    require_plain_name("config", config.stem)
    if config.stem == JOBS_DIR:
        raise ValueError(f"config: {config} would share the folder {JOBS_DIR} with the sweep's jobs; rename it")
    runs: dict[str, PlannedRun] = {}
    for chosen in combinations(settings):
        group = "+".join([config.stem, *(named(chosen, option) for option in settings if len(settings[option]) > 1)])
        common = ["--config", str(config.absolute()), *as_arguments(chosen)]
        checked = check_options(["fit", *common])
        require_end_by_steps(checked.trainer, checked.data.steps_per_epoch)
        for seed in seeds:
            name = f"{group}/seed_{seed}"
            if name in runs:
                raise ValueError(f"set: two combinations would share the folder {name}; drop the values given twice")
            runs[name] = PlannedRun(
                name=name,
                run_dir=(runs_dir / name).absolute(),
                options=(*common, *_own_options(runs_dir.absolute(), group, seed)),
                max_steps=checked.trainer.max_steps,
                hparams={**checked.data.as_dict(), **checked.model.as_dict(), "seed_everything": seed},
                training=training_options(checked.as_dict()),
                watching=watching_options(checked.as_dict()),
            )
    return list(runs.values())


def combinations(settings: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of some options."""
    return [dict(zip(settings, values, strict=True)) for values in product(*settings.values())]


def as_arguments(chosen: Mapping[str, Any]) -> list[str]:
    """Options and their values as one types them for ``fit``."""
    pairs = (
        (f"--{option}", value if isinstance(value, str) else json.dumps(value)) for option, value in chosen.items()
    )
    return [argument for pair in pairs for argument in pair]


def named(chosen: Mapping[str, Any], option: str) -> str:
    """An option and its value as part of a folder's name: ``data.moduli=113-7``."""
    return f"{option}={_slug(chosen[option])}"


def require_end_by_steps(trainer: Any, steps_per_epoch: int) -> None:
    """Make sure that a run ends by its optimizer steps alone, which say whether it is done.

    Raises:
        ValueError: naming the option of ``trainer``.
    """
    if trainer.max_steps < 1:
        raise ValueError(f"trainer.max_steps: {trainer.max_steps} never ends; a sweep needs 1 or more")
    epochs = math.ceil(trainer.max_steps / steps_per_epoch)
    fits = {
        "max_epochs": (trainer.max_epochs in (-1, None) or trainer.max_epochs >= epochs, f"-1, null, {epochs} or more"),
        "max_time": (trainer.max_time is None, "null"),
        "fast_dev_run": (not trainer.fast_dev_run, "false"),
    }
    for option, (fit, allowed) in fits.items():
        if not fit:
            raise ValueError(
                f"trainer.{option}: {trainer[option]} would end runs before trainer.max_steps, which tells a sweep "
                f"that they are done; allowed: {allowed}"
            )


def _own_options(runs_dir: Path, group: str, seed: int) -> list[str]:
    logger = "--trainer.logger.init_args."
    return [
        "--seed_everything", str(seed),
        "--trainer.enable_progress_bar", "false",
        f"{logger}save_dir", str(runs_dir), f"{logger}name", group, f"{logger}version", f"seed_{seed}",
    ]  # fmt: skip


def _slug(value: Any) -> str:
    """A value as part of a folder's name: ``[113, 7]`` to ``113-7``."""
    text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text)
