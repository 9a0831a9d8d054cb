"""How fast the probes are, as ratios measured side by side in one run: python benchmarks/probes.py"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from lit_backdoor.datamodule import task_probes
from lit_backdoor.functional import (
    HeadSet,
    Probe,
    all_heads,
    attribute_heads,
    cache_probes,
    default_head_sets,
    patch_heads,
)
from lit_backdoor.functional.last_position_loss import last_position_loss
from lit_backdoor.functional.token_layout import TokenLayout
from lit_backdoor.model import build_model
from lit_backdoor.task import Task, split_examples

Numbers = list[tuple[float, float]]
"""Each set's accuracy and mean log probability."""


def with_hooks(model: torch.nn.Module, probe: Probe, sets: Sequence[HeadSet]) -> Numbers:
    """The plain way: cache the donor's z once, then one run_with_hooks per set, and its numbers."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, donor = model.run_with_cache(probe.donor_tokens, names_filter=names)

        def numbers(heads: HeadSet) -> tuple[float, float]:
            def patch(z: torch.Tensor, hook: object, layer: int) -> torch.Tensor:
                for head in (head for head in heads if head.layer == layer):
                    z[:, :, head.head] = donor[names[layer]][:, :, head.head]
                return z

            hooks = [
                (names[layer], lambda z, hook, layer=layer: patch(z, hook, layer))
                for layer in sorted({head.layer for head in heads})
            ]
            log_q = model.run_with_hooks(probe.recipient_tokens, fwd_hooks=hooks)[:, -1].double().log_softmax(-1)
            right = (log_q.argmax(-1) == probe.recipient_answers).double().mean().item()
            return right, log_q.gather(1, probe.recipient_answers[:, None]).mean().item()

        return [numbers(heads) for heads in sets]


def ours(model: torch.nn.Module, probe: Probe, sets: Sequence[HeadSet]) -> Numbers:
    """`patch_heads`, and the same two of its numbers."""
    return [(result.recipient_accuracy, result.log_prob) for result in patch_heads(model, probe, sets)]


def largest_difference(these: Numbers, those: Numbers) -> float:
    """Of any two numbers that should be the same."""
    return max(abs(a - b) for one, other in zip(these, those, strict=True) for a, b in zip(one, other, strict=True))


def median_seconds(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run the candidates in turn, `rounds` times after a first one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(rounds + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_one_layer(rounds: int) -> None:
    """The shipped task: all sets of heads, and the shipped cadence beside training steps."""
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
        "ours": lambda: ours(model, backdoor, sets),
        "few": lambda: shipped(few),
        "full": lambda: shipped(sets),
        "attribution": attribution,
        "step": lambda: [last_position_loss(model, layout, train.answers)[0].backward() for _ in range(5)],
    }
    median = median_seconds(candidates, rounds)
    step = median["step"] / 5
    apart = largest_difference(ours(model, backdoor, sets), with_hooks(model, backdoor, sets))
    probing = 4 * median["few"] + median["full"] + 2.5 * median["attribution"]
    share = probing / (1000 * step + probing)
    print(f"one layer of four heads: all 16 sets of heads, {backdoor.n_examples} examples")
    print(f"  one run_with_hooks per set / ours                       {median['hooks'] / median['ours']:6.2f}   (>= 6)")
    print(f"  largest difference in accuracy or log probability       {apart:6.0e}")
    print("the shipped cadence: both probes every 200 steps, all sets every 1000, attribution every 400")
    print(f"  probes / (steps and probes)                             {share:6.1%}   (<= 5%)")
    print(f"  one probe of none, singles and all, in training steps   {median['few'] / step:6.2f}")
    print(f"  one probe of all sets, in training steps                {median['full'] / step:6.2f}")


def deep_model(kind: str, n_layers: int) -> torch.nn.Module:
    """Eight heads in each layer, layer norms and MLPs; reads eight tokens."""
    settings = {
        **{"n_layers": n_layers, "n_heads": 8, "d_model": 128, "d_head": 16, "d_mlp": 512, "n_ctx": 8},
        **{"d_vocab": 113, "act_fn": "gelu", "normalization_type": "LN", "device": "cpu"},
    }
    if kind == "HookedTransformer":
        return HookedTransformer(HookedTransformerConfig(**settings))
    return TransformerBridge.boot_native(TransformerBridgeConfig(**settings, architecture="TransformerLensNative"))


def measure_deeper(kind: str, n_layers: int, n_examples: int, n_shared: int, rounds: int, goal: str = "") -> None:
    """Each head alone and all but one; recipient and donor have the first `n_shared` of eight tokens in common."""
    model = deep_model(kind, n_layers)
    recipient, donor = torch.randint(113, (2, n_examples, 8))
    donor[:, :n_shared] = recipient[:, :n_shared]
    probe = Probe(recipient, donor, recipient[:, -1], donor[:, -1])
    heads = all_heads(model)
    sets = [*((head,) for head in heads), *combinations(heads, len(heads) - 1)]
    numbers: dict[str, Numbers] = {}
    engines = {"hooks": with_hooks, "ours": ours}
    median = median_seconds(
        {name: lambda name=name: numbers.update({name: engines[name](model, probe, sets)}) for name in engines}, rounds
    )
    print(
        f"  {kind:17}  {n_layers} {n_examples:9}  {8 - n_shared} of 8{len(sets):8}"
        f"{median['hooks'] / median['ours']:11.2f}{largest_difference(*numbers.values()):12.0e}   {goal}",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{args.threads} threads")
    measure_one_layer(args.rounds)
    print("layers of eight heads: each head alone, and all but one; hooks / ours is one run_with_hooks per set / ours")
    print("  model         layers  examples  differ    sets  hooks / ours  difference")
    for n_layers in (2, 4):
        for n_shared in (0, 4, 7):
            goal = "(>= 3)" if n_layers == 4 and n_shared else ""
            measure_deeper("HookedTransformer", n_layers, 1000, n_shared, args.rounds, goal)
    measure_deeper("TransformerBridge", 4, 1000, 4, args.rounds)
    measure_deeper("TransformerBridge", 4, 30, 4, args.rounds)


if __name__ == "__main__":
    main()
