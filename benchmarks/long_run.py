"""Memory, open files and event files over a long ``fit``, as a curve: all three must stay flat or grow slowly.

    python benchmarks/long_run.py --steps 20000

Trains the debug configuration, with its probes at the shipped cadence of every 200 steps. Exits with 1 if memory grows
by more than a few MB in the second half, if open files grow at all, or if TensorBoard gets many pictures.
"""

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path

import psutil
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_backdoor.cli.main import main as command_line
from lit_backdoor.functional.row_threads import set_row_threads

CONFIG = Path(__file__).parents[1] / "configs" / "debug.yaml"
ALLOWED_GROWTH = 8.0
"""MB of memory in the second half of the run: the histories, and what the allocator keeps."""
MOST_PICTURES = 10
"""Of a kind: with the first, second, fourth, eighth ... measurement that makes any, and with the last."""

curve: list[tuple[int, float, int, float]] = []


class Watch(Callback):
    """Notes the step, memory and size of the event file in MB, open files; not at the end, where figures are drawn.

    Args:
        every_n_steps: Optimizer steps between two looks.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step < trainer.max_steps:
            gc.collect()
            process = psutil.Process()
            events = sum(path.stat().st_size for path in Path(str(trainer.log_dir)).glob("events*"))
            memory = process.memory_info().rss / 2**20
            curve.append((trainer.global_step, memory, process.num_fds(), events / 2**20))
            print("{:6d} steps  {:7.1f} MB  {:3d} open files  {:6.2f} MB of events".format(*curve[-1]), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    options = parser.parse_args()
    set_row_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        every = {"every_n_steps": max(1, options.steps // 20)}
        config["trainer"] |= {"max_steps": options.steps, "enable_progress_bar": False}
        config["trainer"]["callbacks"] = [{"class_path": f"{Watch.__module__}.Watch", "init_args": every}]
        for name in ("attribution", "patching"):
            config["monitors"][name]["every_n_steps"] = 200
        Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        if command_line(["fit", "--config", "config.yaml"]) != 0:
            return 1
        events = EventAccumulator("lightning_logs/version_0", size_guidance={"images": 0})
        events.Reload()
        most = max(len(events.Images(tag)) for tag in events.Tags()["images"])
    half = curve[len(curve) // 2 :]
    growth = half[-1][1] - half[0][1]
    opened = half[-1][2] - half[0][2]
    print(f"second half: {growth:+.1f} MB of memory, {opened:+d} open files; at most {most} pictures of a kind")
    return int(growth > ALLOWED_GROWTH or opened > 0 or most > MOST_PICTURES)


if __name__ == "__main__":
    sys.modules["long_run"] = sys.modules["__main__"]  # as the configuration names it
    Watch.__module__ = "long_run"
    sys.exit(main())
