"""The parser of every subcommand: what is wrong with an option, in one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser


class OneLineParser(LightningArgumentParser):
    """Reports a wrong option in one line on stderr and exits with 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sys.stderr.write(f"error: {' '.join(message.split())}\n")
        sys.exit(2)


class OptionError(Exception):
    """An option's value is wrong; the message is the one line that says which, and what is allowed."""


@contextmanager
def checking_options() -> Iterator[None]:
    """Inside, before anything is written, a ``ValueError`` means that the user gave a wrong value."""
    try:
        yield
    except ValueError as error:
        raise OptionError(str(error)) from None
