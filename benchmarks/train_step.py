"""How fast a training step is, as ratios measured side by side in one run: python benchmarks/train_step.py

Absolute times mean little on a shared machine, so every figure is a ratio of medians from interleaved rounds. The
neighbours are processes that only count; they are stopped and continued, so that a step beside them and a step alone
take turns. A machine that is busy anyway makes all of it worse: the first line says how busy it was.
"""

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from lit_backdoor.cli.main import main as command_line
from lit_backdoor.functional.clamp import Clamp, Replacement, clamped
from lit_backdoor.functional.heads import head_set
from lit_backdoor.functional.last_position_loss import last_position_loss
from lit_backdoor.functional.products import product
from lit_backdoor.functional.row_threads import one_torch_thread, row_threads, set_row_threads, usable_cores
from lit_backdoor.functional.token_layout import TokenLayout
from lit_backdoor.model import build_model
from lit_backdoor.task import Task, split_examples

CONFIGS = Path(__file__).parents[1] / "configs"
WARM_UP_STEPS = 100
LARGE = 2048

Timed = Callable[[], object]


def medians(candidates: dict[str, Timed], rounds: int) -> dict[str, float]:
    """Seconds of each candidate, the median over interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(rounds + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextmanager
def neighbours(n: int) -> Iterator[Callable[[int, Timed], Timed]]:
    """Processes that can be kept busy: ``beside(k, candidate)`` runs the candidate while k of them are."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]

    def beside(k: int, candidate: Timed) -> Timed:
        def run() -> None:
            for process in processes[:k]:
                process.send_signal(signal.SIGCONT)
            candidate()
            for process in processes[:k]:
                process.send_signal(signal.SIGSTOP)

        return run

    try:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        yield beside
    finally:
        for process in processes:
            process.kill()
            process.wait()


def fit(config: str, steps: int, threads: int) -> list[tuple[int, float]]:
    """Train one of the shipped configurations; steps and the times at which their training loss was logged."""
    options = ["--trainer.max_steps", steps, "--threads", threads, "--trainer.enable_progress_bar", "false"]
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            if command_line(["fit", "--config", str(CONFIGS / config), *map(str, options)]):
                raise SystemExit("fit failed")
        finally:
            os.chdir(here)
        events = EventAccumulator(str(Path(folder, "lightning_logs", "version_0")))
        events.Reload()
        return [(event.step, event.wall_time) for event in events.Scalars("train/loss")]


def fit_seconds_per_step(steps: int, threads: int) -> float:
    """Seconds per step of ``fit`` with the shipped mod 7 configuration, after its first steps and before its end."""
    logged = fit("mod7.yaml", WARM_UP_STEPS + steps + 1, threads)
    (first, start), *_, (last, end) = [at for at in logged if WARM_UP_STEPS <= at[0] <= WARM_UP_STEPS + steps]
    return (end - start) / (last - first)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds (default 20)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default all that may be used)")
    parser.add_argument(
        "--fit_steps", type=int, default=400, help="steps of the measured fit, 20 or more (default 400)"
    )
    parser.add_argument("--debug_steps", type=int, default=300, help="steps of debug.yaml (default 300)")
    args = parser.parse_args()
    if args.fit_steps < 20:
        parser.error(f"--fit_steps: {args.fit_steps} is too few; 20 or more, two of which are logged")
    busy_anyway = os.getloadavg()[0]
    set_row_threads(args.threads)
    threads, cores = row_threads(), usable_cores()
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

    def hooked() -> None:
        step(F.cross_entropy(model(train.tokens)[:, -1].double(), train.answers))

    @one_torch_thread()
    def ours() -> None:
        step(last_position_loss(model, layout, train.answers)[0])

    def benign(tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([tokens[:, :-1], torch.zeros_like(tokens[:, -1:])], dim=1)

    def clamped_step(mode: Replacement) -> Timed:
        clamp = Clamp(head_set("L0H1"), mode, donor_tokens=benign if mode == "donor" else None)
        with clamped(model, clamp):
            own_layout = TokenLayout.of(train.tokens, model)

        @one_torch_thread()
        def run() -> None:
            with clamped(model, clamp):
                step(last_position_loss(model, own_layout, train.answers)[0])

        return run

    large = torch.randn(LARGE, LARGE)
    torch.set_num_threads(threads)
    with neighbours(cores) as beside:
        candidates = {
            "hooked": hooked,
            "ours": ours,
            **{f"ours, {mode}": clamped_step(mode) for mode in get_args(Replacement)},
            "MKL": lambda: large @ large,
            "oneDNN": lambda: product(large, large),
            "ours beside one": beside(1, ours),
            "ours beside all": beside(cores, ours),
        }
        seconds = medians(candidates, args.rounds)
        debug = medians(
            {
                "alone": lambda: fit("debug.yaml", args.debug_steps, threads),
                "beside all": beside(cores, lambda: fit("debug.yaml", args.debug_steps, threads)),
            },
            rounds=3,
        )
    n, d_z, d_mlp, d_vocab = len(train), 128, 512, 113
    # Forward, gradient of the input, gradient of the weight: three times each product of the form.
    products = 3 * 2 * n * (d_z * 128 + 128 * d_mlp + d_mlp * 128 + 128 * d_vocab)
    folded = 3 * 2 * n * (d_z * d_mlp + d_mlp * d_vocab + d_z * d_vocab)
    of_products = {name: products * seconds[name] / (2 * LARGE**3) for name in ("MKL", "oneDNN")}
    per_step = fit_seconds_per_step(args.fit_steps, threads)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    ours_alone = seconds["ours"]
    print(f"\nlast-position step, {n} examples, {threads} threads, {cores} cores, float64 loss, AdamW")
    print(f"  (load of the machine before it began: {busy_anyway:.1f}; one step of ours: {1000 * ours_alone:.0f} ms)")
    for text, ratio, goal in (
        ("HookedTransformer(tokens)[:, -1] step / ours", seconds["hooked"] / ours_alone, ">= 5"),
        ("HookedTransformer step / one step of fit", seconds["hooked"] / per_step, ">= 4"),
        ("ours / products of the last-position form, by MKL", ours_alone / of_products["MKL"], "<= 1.4"),
        ("the same by oneDNN, which ours uses", ours_alone / of_products["oneDNN"], ""),
        ("of these, left after folding", folded / products, ""),
        *(
            (f"ours with a head clamped, {mode} / ours", seconds[f"ours, {mode}"] / ours_alone, "")
            for mode in get_args(Replacement)
        ),
        ("ours beside one busy process / ours alone", seconds["ours beside one"] / ours_alone, "<= 1.7"),
        (f"ours beside {cores} busy processes / ours alone", seconds["ours beside all"] / ours_alone, "<= 2.3"),
        (f"debug.yaml beside {cores} busy processes / alone", debug["beside all"] / debug["alone"], "<= 2.5"),
    ):
        print(f"  {text:52}{ratio:6.2f}   {f'({goal})' if goal else ''}".rstrip())
    print(f"  (products at the rate of a {LARGE} x {LARGE} product on this machine, in this run)")
    print(f"  {'peak memory of this process, fit included':52}{memory:6.2f} GiB")


if __name__ == "__main__":
    main()
