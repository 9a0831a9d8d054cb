"""The command line: ``fit``, ``validate`` and ``test`` through LightningCLI, and the other subcommands."""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_backdoor.callbacks import ContractError, TrainingInterrupted
from lit_backdoor.cli import subcommands
from lit_backdoor.cli.arguments import without_option
from lit_backdoor.cli.fit import BackdoorCLI, StorageFailed
from lit_backdoor.cli.parser import OptionError
from lit_backdoor.cli.quiet import quiet_process
from lit_backdoor.cli.resume import stored_config
from lit_backdoor.functional.row_threads import one_torch_thread
from lit_backdoor.module import TrainingDiverged
from lit_backdoor.runs.directory import as_typed


@one_torch_thread()
def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 (diverged), 2 (wrong option), 130 or 143 (stopped)."""
    args = list(sys.argv[1:] if args is None else args)
    quiet_process()
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
        return _exit_code(stop)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _run_command(name: str, args: Sequence[str]) -> int:
    command = subcommands.command(name)
    parser = command.parser()
    options = parser.parse_args(list(args))
    try:
        return command.run(options)
    except OptionError as error:
        parser.error(str(error))
    except OSError as error:  # a full disk, above all
        where = error.filename or getattr(options, "output_dir", name)
        print(f"error: {where}: {error.strerror or error}", file=sys.stderr)
        return 1


def _continue_command(args: Sequence[str], checkpoint: Path | None) -> str:
    """What to type to continue from a checkpoint; without one, to start again."""
    command = ["python", "-m", "lit_backdoor"]
    if checkpoint is None:
        return shlex.join([*command, *args])
    if stored_config(checkpoint) is None:
        return shlex.join([*command, *without_option(args, "--ckpt_path"), "--ckpt_path", as_typed(checkpoint)])
    return shlex.join([*command, args[0], "--ckpt_path", as_typed(checkpoint)])


def _exit_code(stop: SystemExit) -> int:
    """The code of a parser's or Lightning's exit."""
    if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's way with a Ctrl-C before the first step
        return 128 + signal.SIGINT
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
