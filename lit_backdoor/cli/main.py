"""The command line: ``fit``, ``validate`` and ``test`` through LightningCLI, and the other subcommands."""

import logging
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lit_backdoor.callbacks import ContractError, TrainingInterrupted
from lit_backdoor.cli import subcommands
from lit_backdoor.cli.fit import SRUN_HINT, BackdoorCLI, StorageFailed, shown
from lit_backdoor.cli.parser import OptionError
from lit_backdoor.functional.row_threads import one_torch_thread
from lit_backdoor.module import TrainingDiverged


@one_torch_thread()
def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 (diverged), 2 (wrong option), 130 or 143 (stopped)."""
    args = list(sys.argv[1:] if args is None else args)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_is_worth_a_line)
    # Lightning 2.6 calls a name that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    warnings.filterwarnings("ignore", message=SRUN_HINT)
    try:
        if args and args[0] in subcommands.NAMES:
            return _run_command(args[0], args[1:])
        BackdoorCLI(args)
    except TrainingInterrupted as interruption:
        command = _continue_command(args, interruption.checkpoint)
        print(f"\n{interruption}. Continue with:\n  {command}", file=sys.stderr)
        return 128 + interruption.signal_number
    except TrainingDiverged as divergence:
        print(f"\nerror: {divergence}; the last good checkpoint stays. A smaller --model.lr may help.", file=sys.stderr)
        return 1
    except StorageFailed as failure:
        print(f"\nerror: {failure}", file=sys.stderr)
        if failure.checkpoint is not None:
            command = _continue_command(args, failure.checkpoint)
            print(f"The last checkpoint is whole. Continue with:\n  {command}", file=sys.stderr)
        return 1
    except (ContractError, OptionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's way with a Ctrl-C before the first step
            return 128 + signal.SIGINT
        raise
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _run_command(name: str, args: Sequence[str]) -> int:
    one = subcommands.command(name)
    parser = one.parser()
    options = parser.parse_args(list(args))
    try:
        return one.run(options)
    except OptionError as error:
        parser.error(str(error))
    except OSError as error:  # a full disk, above all
        where = error.filename or getattr(options, "output_dir", name)
        print(f"error: {where}: {error.strerror or error}", file=sys.stderr)
        return 1


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage() and not record.getMessage().startswith("Seed set to")


def _continue_command(args: Sequence[str], checkpoint: Path | None) -> str:
    """What to type to continue from a checkpoint; without one, to start again."""
    command = ["python", "-m", "lit_backdoor", *_without_option(args, "--ckpt_path")]
    return shlex.join(command + (["--ckpt_path", shown(checkpoint)] if checkpoint is not None else []))


def _without_option(args: Sequence[str], option: str) -> list[str]:
    """The arguments without ``option`` and its value."""
    kept, skip = [], False
    for arg in args:
        if not skip and arg != option and not arg.startswith(f"{option}="):
            kept.append(arg)
        skip = arg == option
    return kept
