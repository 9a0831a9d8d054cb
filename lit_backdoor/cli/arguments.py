"""The command line as people type it, turned into what LightningCLI's parser reads."""

import json
from collections.abc import Mapping, Sequence
from inspect import signature
from itertools import pairwise
from pathlib import Path

from lit_backdoor.cli.named_callbacks import NAMED_CALLBACKS
from lit_backdoor.cli.old_configs import readable_config
from lit_backdoor.cli.parser import given_path
from lit_backdoor.cli.resume import stored_config
from lit_backdoor.cli.shipped_configs import find_config
from lit_backdoor.runs.stored import load

CONFIG_FLAGS = ("-c", "--config")
TRANSLATED = (*CONFIG_FLAGS, *(f"--{name}" for name in NAMED_CALLBACKS))
"""Options whose values are translated."""
LIST_OF_CALLBACKS = "--trainer.callbacks"

EVALUATION_OPTIONS: Mapping[str, Sequence[str] | None] = {
    "data": None,
    "model": None,
    "trainer": ("precision", "limit_val_batches", "limit_test_batches"),
}
"""What evaluating a run takes from its configuration, by group; None: the whole group. None of it can name a class."""


def prepare_arguments(args: Sequence[str], notes: list[str]) -> list[str]:
    """Translate the arguments of ``fit``, ``validate`` or ``test``.

    - ``--config debug`` becomes the path of the configuration that ships under that name.
    - ``--monitors.spikes null`` becomes a configuration that says so; the parser takes null from those only.
    - ``--ckpt_path RUN/checkpoints/last.ckpt`` without ``--config`` brings the run's stored configuration; ``validate``
      and ``test`` get no more of it than :data:`EVALUATION_OPTIONS`.

    Args:
        notes: Gets a line for the user for every configuration of which something is left out.

    Raises:
        ValueError: if a configuration does not exist, or an option of a callback would change another callback than
            its name says.
    """
    split = _split_flags(args)
    _refuse_options_of_a_list(split)
    prepared: list[str] = []
    rest = iter(split)
    for arg in rest:
        if arg not in TRANSLATED or (value := next(rest, None)) is None:
            prepared.append(arg)
        elif arg in CONFIG_FLAGS:
            prepared += [arg, value if value.startswith("{") else readable_config(find_config(value), notes)]
        elif value == "null":
            prepared += ["--config", _left_out(arg.removeprefix("--"))]
        else:
            prepared += [arg, value]
    if run_config := None if set(CONFIG_FLAGS) & set(split) else _config_of_the_run(split):
        of_run = readable_config(run_config, notes) if split[0] == "fit" else _to_evaluate(run_config)
        prepared[1:1] = ["--config", of_run]
    return prepared


def without_option(args: Sequence[str], *options: str) -> list[str]:
    """The arguments without some options and their values."""
    kept: list[str] = []
    skip = False
    for arg in args:
        if not skip and arg not in options and arg.partition("=")[0] not in options:
            kept.append(arg)
        skip = arg in options
    return kept


def value_of(args: Sequence[str], option: str) -> str | None:
    """The last value that the arguments give to an option."""
    values = [value for flag, value in pairwise(args) if flag == option]
    return values[-1] if values else None


def _split_flags(args: Sequence[str]) -> list[str]:
    """``--config=debug`` as two arguments, for the options that are looked at here."""
    split: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        split += [flag, value] if equals and flag in (*TRANSLATED, "--ckpt_path") else [arg]
    return split


def _left_out(name: str) -> str:
    """A configuration in which a named callback is null."""
    content: object = None
    for part in reversed(name.split(".")):
        content = {part: content}
    return json.dumps(content)


def _config_of_the_run(args: Sequence[str]) -> Path | None:
    checkpoint = value_of(args, "--ckpt_path")
    return None if not checkpoint else stored_config(given_path("ckpt_path", checkpoint))


def _to_evaluate(path: Path) -> str:
    """The part of a run's configuration that evaluates it: nothing that it names is imported or built.

    Raises:
        ValueError: if the file can't be read.
    """
    try:
        config = load(path)
        kept = {
            group: {name: value for name, value in config[group].items() if names is None or name in names}
            for group, names in EVALUATION_OPTIONS.items()
            if group in config
        }
        return json.dumps(kept)
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"config: {path} is no configuration of a run ({error})") from None


def _refuse_options_of_a_list(args: Sequence[str]) -> None:
    """Refuse ``--trainer.callbacks.OPTION`` unless the callback it belongs to has been listed right before.

    The parser would give the option to the last callback of a configuration's list, whichever that is.
    """
    listed = False
    for arg in args:
        flag = arg.partition("=")[0]
        listed = listed or flag in (LIST_OF_CALLBACKS, f"{LIST_OF_CALLBACKS}+")
        if flag.startswith(f"{LIST_OF_CALLBACKS}.") and not listed:
            option = flag.removeprefix(f"{LIST_OF_CALLBACKS}.")
            raise ValueError(
                f"{flag.removeprefix('--')}: trainer.callbacks is a list, and this does not say which of its callbacks "
                f"is meant; give the option to a callback by its name, such as {_example(option)}"
            )


def _example(option: str) -> str:
    """The names under which an option of that name is set."""
    option = option.removeprefix("init_args.")
    owners = [name for name, kind in NAMED_CALLBACKS.items() if option in signature(kind).parameters]
    return ", ".join(f"--{name}.{option}" for name in owners or ["monitors.patching"])
