"""``env``: what a bug report needs."""

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lit_backdoor.cli.parser import OneLineParser
from lit_backdoor.runs.environment import environment

HELP = "Print what a bug report needs: versions, device, threads, git commit. A run keeps it in environment.json."


def parser() -> ArgumentParser:
    """The options of ``env``: none."""
    return OneLineParser(description=HELP, prog="lit-backdoor env")


def run(options: Namespace) -> int:
    """Print the environment of this process as JSON."""
    print(json.dumps(environment(Path.cwd()), indent=2))
    return 0
