"""How fast the probes are, as ratios measured side by side in one run: python benchmarks/probes.py"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import (
    Head,
    HeadSet,
    Probe,
    all_heads,
    attribute_heads,
    cache_probes,
    default_head_sets,
    patch_heads,
)
from lit_backdoor.functional.last_position import TokenLayout
from lit_backdoor.functional.last_position_loss import last_position_loss
from lit_backdoor.model import build_model
from lit_backdoor.task import Task, split_examples


def with_hooks(model: torch.nn.Module, probe: Probe, sets: list[HeadSet]) -> list[float]:
    """The plain way: cache the donor's z once, then one run_with_hooks per set, and its accuracy."""
    name = "blocks.0.attn.hook_z"
    with torch.no_grad():
        _, cache = model.run_with_cache(probe.donor_tokens, names_filter=name)
        donor, accuracies = cache[name], []
        for heads in sets:

            def patch(z: torch.Tensor, hook: object, heads: tuple[Head, ...] = heads) -> torch.Tensor:
                for head in heads:
                    z[:, :, head.head] = donor[:, :, head.head]
                return z

            logits = model.run_with_hooks(probe.recipient_tokens, fwd_hooks=[(name, patch)])[:, -1]
            accuracies.append((logits.argmax(-1) == probe.recipient_answers).float().mean().item())
    return accuracies


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    task = Task((113, 7))
    model = build_model(113)
    probes = task_probes(task)
    backdoor = probes["backdoor"]
    sets = default_head_sets(1, 4)
    few = [(), *((head,) for head in all_heads(model)), all_heads(model)]
    train, _ = split_examples(task)
    layout = TokenLayout.of(train.tokens, model)

    def shipped(chosen: list[HeadSet]) -> None:
        caches = cache_probes(model, *probes.values())
        for probe in probes.values():
            patch_heads(model, probe, chosen, caches=caches)

    def attribution() -> None:
        caches = cache_probes(model, *probes.values())  # the two monitors know nothing of one another
        for probe in probes.values():
            attribute_heads(model, probe, caches)

    candidates: dict[str, Callable[[], object]] = {
        "hooks": lambda: with_hooks(model, backdoor, sets),
        "ours": lambda: patch_heads(model, backdoor, sets),
        "few": lambda: shipped(few),
        "full": lambda: shipped(sets),
        "attribution": attribution,
        "step": lambda: [last_position_loss(model, layout, train.answers)[0].backward() for _ in range(5)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(args.rounds + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    step = median["step"] / 5
    found = [result.recipient_accuracy for result in patch_heads(model, backdoor, sets)]
    apart = max(abs(a - b) for a, b in zip(found, with_hooks(model, backdoor, sets), strict=True))
    probing = 4 * median["few"] + median["full"] + 2.5 * median["attribution"]
    share = probing / (1000 * step + probing)
    print(f"all 16 sets of heads, {backdoor.n_examples} examples, {args.threads} threads")
    print(f"  one run_with_hooks per set / ours                       {median['hooks'] / median['ours']:6.2f}   (>= 6)")
    print(f"  largest difference in accuracy between the two          {apart:6.0e}")
    print("the shipped cadence: both probes every 200 steps, all sets every 1000, attribution every 400")
    print(f"  probes / (steps and probes)                             {share:6.1%}   (<= 5%)")
    print(f"  one probe of none, singles and all, in training steps   {median['few'] / step:6.2f}")
    print(f"  one probe of all sets, in training steps                {median['full'] / step:6.2f}")


if __name__ == "__main__":
    main()
