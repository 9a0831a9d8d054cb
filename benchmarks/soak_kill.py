"""Kills ``fit`` with SIGKILL again and again, continues it every time, and compares the end with an undisturbed run.

    python benchmarks/soak_kill.py --kills 50

Half of the kills come at a random moment (in a step, in a probe, ...), half right before a random file operation:
before a file is opened for writing, renamed or removed, or a directory is made. What has no checkpoint yet is started
again with the same command, the rest with --ckpt_path. To be the same in the end: the weights bit for bit, every table
and the verdict byte for byte, and what TensorBoard shows, point for point. Exits with 1 if anything differs.

The processes are forked from this one, which has imported everything, so that a start takes a second, not ten.
"""

import argparse
import faulthandler
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_backdoor.cli.main import main as command_line
from lit_backdoor.functional.row_threads import set_row_threads
from lit_backdoor.runs.checkpoints import read_checkpoint

CONFIG = Path(__file__).parents[1] / "configs" / "debug.yaml"
COMPARED = ("metrics.csv", "head_attribution.csv", "head_patching.csv", "loss_spikes.csv", "emergence.json")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PHASES = {  # by what is on the stack, the first that fits
    "writing a checkpoint": ("callbacks/checkpoint.py",),
    "writing a table or verdict": ("runs/tables.py",),
    "writing for TensorBoard": ("lit_backdoor/logger.py", "tensorboard"),
    "in a probe": ("callbacks/probing.py",),
    "in a validation": ("in validation_step", "in _validate_now"),
    "in an optimizer step": ("in training_step", "optim/"),
    "between two steps": ("in advance",),
}


@dataclass(frozen=True)
class Kill:
    """When to kill: after a time, in seconds, or right before the n-th file operation."""

    seconds: float = 0.0
    operation: int = 0


class Fit:
    """One run of ``fit`` in a directory of its own; the same command starts it and goes on with it."""

    def __init__(self, directory: Path, steps: int) -> None:
        self.directory = directory
        self.run_dir = directory / "logs" / "run"
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        config["trainer"] |= {"max_steps": steps, "val_check_interval": 20, "log_every_n_steps": 5}
        place = {"save_dir": str(directory), "name": "logs", "version": "run"}
        config["trainer"]["logger"] = {"class_path": "lit_backdoor.logger.RunLogger", "init_args": place}
        config["monitors"] = {
            "attribution": {"every_n_steps": 20},
            "patching": {"every_n_steps": 20, "full_every_n_steps": 100},
        }
        config["checkpoint"] = {"every_n_steps": 25, "keep_every_n_steps": 100}
        directory.mkdir()
        (directory / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def arguments(self) -> list[str]:
        """What to type next."""
        last = self.run_dir / "checkpoints" / "last.ckpt"
        args = ["fit", "--config", str(self.directory / "config.yaml"), "--trainer.enable_progress_bar", "false"]
        return [*args, "--ckpt_path", str(last)] if last.exists() else args

    def result(self) -> dict[str, Any]:
        """What has to come out the same."""
        files = {name: (self.run_dir / name).read_bytes() for name in COMPARED}
        weights = read_checkpoint(self.run_dir / "checkpoints" / "last.ckpt")["state_dict"]
        return files | {"the weights": weights, "TensorBoard": tensorboard_points(self.run_dir)}


def tensorboard_points(run_dir: Path) -> dict[str, list[tuple[int, str]]]:
    """All points that TensorBoard shows of a run, by tag; values as hexadecimal text, by which NaN equals NaN."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value.hex()) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def is_same(one: Any, other: Any) -> bool:
    """Equality, bit for bit for tensors."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def run_once(run: Fit, kill: Kill | None) -> tuple[int | None, str]:
    """Start the command in a process of its own; its exit code, or ``None`` and the stack where it was killed."""
    args = run.arguments()
    stack = run.directory / "stack.txt"
    stack.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        be_killed(run.directory, stack, args, kill)
    if kill is not None and kill.seconds:
        deadline = time.monotonic() + kill.seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status), ""
            time.sleep(0.002)
        os.kill(child, signal.SIGUSR1)  # writes its stack, from inside of whatever it does
        while not (stack.exists() and stack.stat().st_size) and time.monotonic() < deadline + 1:
            time.sleep(0.0002)
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    killed = code in (-signal.SIGKILL, -signal.SIGUSR1)  # Lightning takes the handler of the latter away at its end
    return (None, stack.read_text(encoding="utf-8") if stack.exists() else "") if killed else (code, "")


def be_killed(directory: Path, stack: Path, args: list[str], kill: Kill | None) -> None:
    """The child: runs the command, ready to say where it is; never returns."""
    os.setpgid(0, 0)
    output = os.open(directory / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    told = os.open(stack, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    faulthandler.register(signal.SIGUSR1, file=told, all_threads=False)
    if kill is not None and kill.operation:
        left = kill.operation

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            writes = event in ("os.rename", "os.remove", "os.mkdir") or (event == "open" and arguments[2] & WRITING)
            if writes and str(arguments[0]).startswith(str(directory)):
                left -= 1
                if left == 0:
                    os.write(told, f"before {event} of {arguments[0]}\n".encode())
                    faulthandler.dump_traceback(told, all_threads=False)
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
    code = 1
    try:
        code = command_line(args)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def phase(stack: str) -> str:
    """Where a process was killed, in words."""
    return next((name for name, marks in PHASES.items() if any(mark in stack for mark in marks)), "starting or ending")


def soak(directory: Path, kills: int, steps: int, seed: int) -> int:
    """Kill, continue, compare; the exit code."""
    randomly = random.Random(seed)
    undisturbed = Fit(directory / "undisturbed", steps)
    start = time.monotonic()
    code, _ = run_once(undisturbed, None)
    if code != 0:
        raise SystemExit((undisturbed.directory / "output.txt").read_text(encoding="utf-8"))
    seconds = time.monotonic() - start
    expected = undisturbed.result()
    operations = (steps // 5) + 6 * (steps // 20) + 6 * (steps // 25)
    hits: Counter[str] = Counter()
    moments, starts, runs, differing = 0, 0, 0, []
    while sum(hits.values()) < kills:
        run = Fit(directory / f"run_{runs}", steps)
        runs += 1
        code = None
        while code is None:
            kill = None
            if sum(hits.values()) < kills:
                moment = Kill(seconds=randomly.uniform(seconds / 8, seconds))
                kill = randomly.choice((moment, Kill(operation=randomly.randrange(1, operations))))
            starts += 1
            code, stack = run_once(run, kill)
            if code is None:
                hits[phase(stack)] += 1
                moments += bool(kill and kill.seconds)
        if code != 0:
            output = (run.directory / "output.txt").read_text(encoding="utf-8")
            differing.append(f"run {runs} ended with exit code {code}:\n{output[-2000:]}")
            break
        found = run.result()
        differing += [f"run {runs}: {name} differs" for name in expected if not is_same(found[name], expected[name])]
    print(f"{sum(hits.values())} kills, {moments} at a random moment, the rest before a random file operation")
    for name, count in hits.most_common():
        print(f"  {count:4d}  {name}")
    print(f"{runs} runs of {steps} steps in {starts} starts, each compared with the undisturbed run in:")
    print(f"  {', '.join(expected)} ({sum(map(len, expected['TensorBoard'].values()))} points)")
    print("\n".join(differing) if differing else "no difference")
    return int(bool(differing))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_row_threads(1)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every continued run
    import transformer_lens  # noqa: F401  # once, here, not in every start

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        return soak(Path(directory), options.kills, options.steps, options.seed)


if __name__ == "__main__":
    sys.exit(main())
