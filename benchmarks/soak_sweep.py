"""Kills ``sweep`` or ``reproduce --scale smoke`` with SIGKILL again and again, and goes on with the same command.

    python benchmarks/soak_sweep.py --command sweep --kills 25

Killed are, at random moments: the command alone, whose jobs go on; one job; everything at once. What stops, for
whatever reason, is started again with the same command, until that ends with exit code 0. To be the same in the end,
for every run: the weights bit for bit, every table and the verdict byte for byte, what TensorBoard shows point for
point; and the tables of the report. Exits with 1 if anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from soak_kill import COMPARED, CONFIG, is_same, tensorboard_points

from lit_backdoor.runs.checkpoints import read_checkpoint

COMMANDS = {
    "sweep": ["sweep", "--config", str(CONFIG), "--seeds", "0..2", "--set", "trainer.max_steps=[800]", "--jobs", "2"],
    "reproduce": ["reproduce", "--scale", "smoke", "--jobs", "2"],
}
MARK = "SOAK_SWEEP"
KINDS = ("the command", "a job", "everything")
MOST_STARTS = 200


def start(command: str, directory: Path) -> "subprocess.Popen[bytes]":
    """The command, in a process group of its own; it and its jobs carry the directory in their environment."""
    with (directory / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "lit_backdoor", *COMMANDS[command], "--output_dir", str(directory / "out")],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {MARK: str(directory)},
        )


def jobs(directory: Path) -> list[int]:
    """The processes that belong to a command in ``directory``, whoever their parent is now."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended, or is somebody else's
            continue
        if f"{MARK}={directory}".encode() in environment:
            found.append(int(process.name))
    return found


def kill(kind: str, process: "subprocess.Popen[bytes]", directory: Path, randomly: random.Random) -> bool:
    """Whether there was anything to kill."""
    others = [pid for pid in jobs(directory) if pid != process.pid]
    chosen = {
        "the command": [process.pid],
        "a job": others and [randomly.choice(others)],
        "everything": [process.pid, *others],
    }[kind]
    for pid in chosen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            chosen = []
    return bool(chosen)


def until_done(command: str, directory: Path, hits: Counter[str], kills: int, randomly: random.Random) -> int:
    """Start the command until it ends well, killing meanwhile; how often it was started."""
    directory.mkdir()
    for starts in range(1, MOST_STARTS):
        process = start(command, directory)
        while hits.total() < kills:
            try:
                process.wait(timeout=randomly.uniform(2, 40))
                break
            except subprocess.TimeoutExpired:
                kind = randomly.choice(KINDS)
                hits[kind] += kill(kind, process, directory, randomly)
                if kind != "a job":
                    break
        if process.wait() == 0:
            return starts
    raise SystemExit(f"not done after {MOST_STARTS} starts:\n{(directory / 'output.txt').read_text()[-2000:]}")


def results(directory: Path) -> dict[str, Any]:
    """What has to come out the same, by run and by table of the report."""
    found: dict[str, Any] = {}
    for checkpoint in sorted(directory.glob("out/**/checkpoints/last.ckpt")):
        run_dir = checkpoint.parents[1]
        name = str(run_dir.relative_to(directory))
        found |= {f"{name}/{table}": (run_dir / table).read_bytes() for table in COMPARED if (run_dir / table).exists()}
        found[f"{name}: the weights"] = read_checkpoint(checkpoint)["state_dict"]
        found[f"{name}: TensorBoard"] = tensorboard_points(run_dir)
    for table in sorted(directory.glob("out/*report/*.csv")):
        found[str(table.relative_to(directory))] = table.read_bytes()
    return found


def soak(command: str, directory: Path, kills: int, seed: int) -> int:
    """Kill, go on, compare; the exit code."""
    randomly = random.Random(seed)
    hits: Counter[str] = Counter()
    until_done(command, directory / "undisturbed", hits, 0, randomly)
    expected = results(directory / "undisturbed")
    starts, rounds, differing = 0, 0, []
    began = time.monotonic()
    while hits.total() < kills:
        place = directory / f"round_{rounds}"
        starts += until_done(command, place, hits, kills, randomly)
        rounds += 1
        found = results(place)
        differing += [
            f"round {rounds}: {name} differs"
            for name in expected.keys() | found.keys()
            if name not in found or name not in expected or not is_same(found[name], expected[name])
        ]
        print(f"{hits.total()} of {kills} kills, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    runs = len({name for name in expected if name.endswith("the weights")})
    print(f"{command}: {hits.total()} kills: " + ", ".join(f"{hits[kind]} of {kind}" for kind in KINDS))
    print(f"{rounds} times {runs} runs in {starts} starts, compared in {len(expected)} things with undisturbed runs:")
    print(f"  the weights, TensorBoard, {', '.join(COMPARED)}" + (", the report" if command == "reproduce" else ""))
    print("\n".join(differing) if differing else "no difference")
    return int(bool(differing))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--command", choices=COMMANDS, default="sweep")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        return soak(options.command, Path(directory), options.kills, options.seed)


if __name__ == "__main__":
    sys.exit(main())
