"""The subcommands beside LightningCLI's own: one module each, with ``HELP``, ``parser()`` and ``run(options)``.

``run`` gets the parsed options and returns the exit code. An ``OptionError`` that it raises goes to stderr as one line,
and the exit code is 2.
"""

from importlib import import_module
from typing import Protocol, cast

from jsonargparse import ArgumentParser, Namespace

NAMES = ("analyze", "replay", "sweep", "report", "reproduce", "env")


class Command(Protocol):
    """What every module in here offers."""

    HELP: str

    def parser(self) -> ArgumentParser:
        """The options."""

    def run(self, options: Namespace) -> int:
        """Do it; the exit code."""


def command(name: str) -> Command:
    """The module of a subcommand."""
    return cast(Command, import_module(f"{__package__}.{name}"))
