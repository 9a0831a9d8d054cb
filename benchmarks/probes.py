"""How fast the probes are, as ratios measured side by side in one run: python benchmarks/probes.py"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
import yaml
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

import lit_backdoor
from lit_backdoor.callbacks import ProbeCallback
from lit_backdoor.cli.named_callbacks import NAMED_CALLBACKS
from lit_backdoor.datamodule import BackdoorDataModule, task_probes
from lit_backdoor.functional import HeadSet, Probe, all_heads, default_head_sets, patch_heads
from lit_backdoor.functional.last_position_loss import last_position_loss
from lit_backdoor.functional.row_threads import set_row_threads
from lit_backdoor.functional.token_layout import TokenLayout
from lit_backdoor.model import build_model
from lit_backdoor.task import Task

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
    """The shipped task: all sets of heads."""
    model, sets = build_model(113), default_head_sets(1, 4)
    backdoor = task_probes(Task((113, 7)))["backdoor"]
    engines = {"hooks": with_hooks, "ours": ours}
    median = median_seconds({name: partial(engine, model, backdoor, sets) for name, engine in engines.items()}, rounds)
    apart = largest_difference(ours(model, backdoor, sets), with_hooks(model, backdoor, sets))
    print(f"one layer of four heads: all 16 sets of heads, {backdoor.n_examples} examples")
    print(f"  one run_with_hooks per set / ours                       {median['hooks'] / median['ours']:6.2f}   (>= 6)")
    print(f"  largest difference in accuracy or log probability       {apart:6.0e}")


def measure_shipped_monitors(rounds: int) -> None:
    """What every monitor of `defaults.yaml` costs at its cadence, beside the training steps of the shipped task."""
    defaults = yaml.safe_load((Path(lit_backdoor.__file__).parent / "defaults.yaml").read_text())
    data, model = BackdoorDataModule(), build_model(113)
    kinds = {name: NAMED_CALLBACKS[f"monitors.{name}"] for name in defaults["monitors"]}
    named = {
        name: kind(**defaults["monitors"][name]) for name, kind in kinds.items() if issubclass(kind, ProbeCallback)
    }
    for monitor in named.values():
        monitor.check_model(model, data, [monitor])
    layout, optimizer = TokenLayout.of(data.train_examples.tokens, model), torch.optim.AdamW(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        last_position_loss(model, layout, data.train_examples.answers)[0].backward()
        optimizer.step()

    candidates: dict[str, Callable[[], object]] = {"step": lambda: [step() for _ in range(5)]}
    for name, monitor in named.items():  # step 0 has everything, step 1 what is measured often
        candidates |= {f"{name} {at}": partial(monitor.measure, model, at, False) for at in (0, 1)}
    median = median_seconds(candidates, rounds)
    n_steps, one_step = defaults["trainer"]["max_steps"], median["step"] / 5
    print(f"monitors at their shipped cadence, {n_steps} steps; costs in training steps")
    print(f"  {'':12}{'often':>8}{'times':>8}{'full':>8}{'times':>8}{'share':>9}")
    total = 0.0
    for name, monitor in named.items():
        due = [at for at in range(n_steps + 1) if monitor.is_due(at)]
        n_full = sum(at % getattr(monitor, "full_every_n_steps", 1) == 0 for at in due)
        often, full = (median[f"{name} {at}"] / one_step for at in (1, 0))
        cost = often * (len(due) - n_full) + full * n_full
        total += cost
        print(f"  {name:12}{often:8.2f}{len(due) - n_full:8}{full:8.2f}{n_full:8}{cost / n_steps:9.2%}")
    print(f"  all monitors / (steps and monitors)                     {total / (n_steps + total):6.1%}   (<= 5%)")


def deep_model(kind: str, n_layers: int) -> torch.nn.Module:
    """Eight heads in each layer, layer norms and MLPs; reads eight tokens."""
    settings = {
        **{"n_layers": n_layers, "n_heads": 8, "d_model": 128, "d_head": 16, "d_mlp": 512, "n_ctx": 8},
        **{"d_vocab": 113, "act_fn": "gelu", "normalization_type": "LN", "device": "cpu"},
    }
    if kind == "HookedTransformer":
        return HookedTransformer(HookedTransformerConfig(**settings))
    return TransformerBridge.boot_native(TransformerBridgeConfig(**settings, architecture="TransformerLensNative"))


def measure_deeper(kind: str, n_layers: int, n_examples: int, rounds: int) -> None:
    """Each head alone and all but one; recipient and donor differ in the last eight, four or one of eight tokens."""
    model = deep_model(kind, n_layers)
    heads = all_heads(model)
    sets = [*((head,) for head in heads), *combinations(heads, len(heads) - 1)]
    recipient, donor = torch.randint(113, (2, n_examples, 8))
    probes = {}
    for n_differing in (8, 4, 1):
        shared = torch.cat([recipient[:, : 8 - n_differing], donor[:, 8 - n_differing :]], dim=1)
        probes[n_differing] = Probe(recipient, shared, recipient[:, -1], donor[:, -1])
    candidates = {"hooks": lambda: with_hooks(model, probes[8], sets)}  # whatever differs, it takes as long
    for n_differing, probe in probes.items():
        candidates[str(n_differing)] = lambda probe=probe: ours(model, probe, sets)
    median = median_seconds(candidates, rounds)
    some = sets[:: len(sets) // 8]
    for n_differing, probe in probes.items():
        ratio = median["hooks"] / median[str(n_differing)]
        apart = largest_difference(ours(model, probe, some), with_hooks(model, probe, some))
        goal = "(>= 3)" if n_layers == 4 and n_differing < 8 and kind == "HookedTransformer" else ""
        case = f"{kind:17}  {n_layers}{n_examples:10}  {n_differing} of 8{len(sets):8}"
        print(f"  {case}{ratio:14.2f}{apart:12.0e}   {goal}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--monitors", action="store_true", help="only what the monitors cost")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)  # the plain way's
    set_row_threads(args.threads)  # ours
    torch.manual_seed(0)
    print(f"{args.threads} threads")
    measure_shipped_monitors(args.rounds)
    if args.monitors:
        return
    measure_one_layer(args.rounds)
    print(
        "layers of eight heads, each head alone and all but one: one run_with_hooks per set / ours; largest difference"
    )
    print("  model        layers  examples  differ    sets  hooks / ours  difference")
    measure_deeper("HookedTransformer", 2, 1000, args.rounds)
    measure_deeper("HookedTransformer", 4, 1000, args.rounds)
    measure_deeper("TransformerBridge", 4, 100, args.rounds)
    measure_deeper("TransformerBridge", 4, 30, args.rounds)


if __name__ == "__main__":
    main()
