"""The parser of every subcommand: what is wrong with an option, in one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from lit_backdoor.cli.error_messages import in_one_line, unknown_option
from lit_backdoor.limits import PositiveInt


class OneLineParser(LightningArgumentParser):
    """Reports a wrong option in one line on stderr and exits with 2."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As usual; a configuration that is no text, or can't be read, is a wrong option too."""
        try:
            return super().parse_args(*args, **kwargs)
        except (OSError, UnicodeDecodeError) as error:
            self.error(f"config: it can't be read as YAML text: {error}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        types = _types_of_options(parser)
        classes = [f"{name}." for name in parser.groups or () if name[:1].isupper()]  # of a class that a config names
        hint = self.hint(unknown) if (unknown := unknown_option(message)) else None
        sys.stderr.write(f"error: {hint or in_one_line(message, types, owner=''.join(classes[:1]))}\n")
        sys.exit(2)

    def hint(self, option: str) -> str | None:
        """What to say of an option that does not exist, where more than that can be said."""
        return None


def add_threads_option(options: ArgumentParser) -> None:
    """How many CPU threads a command may use; see :mod:`lit_backdoor.functional.row_threads`."""
    help_threads = (
        "CPU threads; null: one for each core that this process may use (affinity, cgroup quota), and no more than "
        "OMP_NUM_THREADS. The results are the same with any number, bit for bit."
    )
    options.add_argument("--threads", type=PositiveInt | None, default=None, help=help_threads)


def _types_of_options(parser: ArgumentParser) -> dict[str, Any]:
    """The options of a parser and its subcommands, with the types that their values must have."""
    types: dict[str, Any] = {}
    for action in parser._actions:
        types[action.dest] = getattr(action, "_typehint", action.type)
        for subparser in action.choices.values() if isinstance(action.choices, dict) else ():
            types = _types_of_options(subparser) | types
    return types


class OptionError(Exception):
    """An option's value is wrong; the message is the one line that says which, and what is allowed."""


def given_path(option: str, text: str) -> Path:
    """A path as the user gave it.

    Raises:
        ValueError: if it is empty, or the system takes it for none.
    """
    try:
        path = Path(text)
        path.resolve()
        if not text or (path.is_symlink() and not path.exists()):
            raise ValueError("it leads nowhere" if text else "it is empty")
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{option}: '{text[:80]}' is no path to use: {reason}") from None
    return path


@contextmanager
def checking_options() -> Iterator[None]:
    """Inside, before anything is written, a ``ValueError`` means that the user gave a wrong value."""
    try:
        yield
    except ValueError as error:
        raise OptionError(str(error)) from None
