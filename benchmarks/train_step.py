"""How fast a training step is, as ratios measured side by side in one run: python benchmarks/train_step.py

Absolute times mean little on a shared machine, so every figure is a ratio of medians from interleaved rounds.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from lit_backdoor.cli.main import main as command_line
from lit_backdoor.functional.last_position import TokenLayout
from lit_backdoor.functional.last_position_loss import last_position_loss
from lit_backdoor.model import build_model
from lit_backdoor.task import Task, split_examples

CONFIG = Path(__file__).parents[1] / "configs" / "mod7.yaml"


def medians(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each candidate, the median over interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(rounds + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def fit_seconds_per_step(steps: int) -> float:
    """Seconds per step of ``fit`` with the shipped mod 7 configuration, after its first 100 steps."""
    with tempfile.TemporaryDirectory() as folder:
        here = os.getcwd()
        os.chdir(folder)
        try:
            if command_line(["fit", "--config", str(CONFIG), "--trainer.max_steps", str(steps + 100)]):
                raise SystemExit("fit failed")
        finally:
            os.chdir(here)
        events = EventAccumulator(str(Path(folder, "lightning_logs", "version_0")))
        events.Reload()
        clock = {event.step: event.wall_time for event in events.Scalars("train/loss")}
    return (clock[steps] - clock[100]) / (steps - 100)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--fit_steps", type=int, default=400, help="steps of the measured fit (default 400)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    train, _ = split_examples(Task((113, 7)))
    model = build_model(113)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), fused=True)
    layout = TokenLayout.of(train.tokens, model)

    def step(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    large = torch.randn(2048, 2048)
    seconds = medians(
        {
            "hooked": lambda: step(F.cross_entropy(model(train.tokens)[:, -1].double(), train.answers)),
            "ours": lambda: step(last_position_loss(model, layout, train.answers)[0]),
            "large": lambda: large @ large,
        },
        args.rounds,
    )
    rate = 2 * 2048**3 / seconds["large"]
    n, d_z, d_mlp, d_vocab = len(train), 128, 512, 113
    # Forward, gradient of the input, gradient of the weight: three times each product of the form.
    folded = 3 * 2 * n * (d_z * d_mlp + d_mlp * d_vocab + d_z * d_vocab)
    unfolded = 3 * 2 * n * (d_z * 128 + 128 * d_mlp + d_mlp * 128 + 128 * d_vocab)
    fit = fit_seconds_per_step(args.fit_steps)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    print(f"\nlast-position step, {n} examples, {args.threads} threads, float64 loss, AdamW")
    print(f"  HookedTransformer(tokens)[:, -1] step / ours      {seconds['hooked'] / seconds['ours']:6.2f}   (>= 5)")
    print(f"  HookedTransformer step / one step of fit          {seconds['hooked'] / fit:6.2f}   (>= 4)")
    print(f"  ours / products of the last-position form         {seconds['ours'] * rate / unfolded:6.2f}   (<= 1.5)")
    print(f"  ours / products it is left with after folding     {seconds['ours'] * rate / folded:6.2f}")
    print("  (products at the rate of a 2048 x 2048 product on this machine, in this run)")
    print(f"  peak memory of this process, fit included         {memory:6.2f} GiB")


if __name__ == "__main__":
    main()
