"""Ways to remove a backdoor, against TransformerLens's own hooks and autograd, and on a model whose head is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.datamodule import task_probes, task_rules
from lit_backdoor.functional import (
    BackdoorExamples,
    Removal,
    check_removal,
    measure_removal,
    parse_removal,
    patched_path_logits,
    plan_removals,
    why_not_in_weights,
    with_changed_weights,
)
from lit_backdoor.functional.one_layer_paths import one_layer_engine
from lit_backdoor.functional.removal import METHODS, surgery_edges
from lit_backdoor.functional.retraining import steps_until_back, surgery_logits, training_steps
from lit_backdoor.model import build_model
from lit_backdoor.task import Task, split_examples
from tests.helpers.both_kinds import randomize
from tests.helpers.known_head import KNOWN_HEAD, TASK, hand_built

SMALL = Task((7, 2))


def random_model(seed: int = 0, task: Task = SMALL, **options: Any) -> Any:
    sizes = {"n_heads": 3, "d_model": 8, "d_head": 4, "d_mlp": 9, "dtype": torch.float64, "train_biases": True}
    return randomize(build_model(task.d_vocab, **{**sizes, **options}), seed)


def examples_of(task: Task = SMALL) -> BackdoorExamples:
    train, _ = split_examples(task, train_fraction=0.6)
    rules = task_rules(task, train)
    return BackdoorExamples(task_probes(task)["backdoor"], rules["backdoor"].trained, rules["benign"].trained)


def with_heads(model: Any, tokens: Tensor, new_z: Tensor, heads: list[int]) -> Tensor:
    """The last logits with some heads' z at the last position replaced, by a hook of this test's own."""

    def hook(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, -1, heads] = new_z[:, heads]
        return z

    return model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", hook)])[:, -1]


def last_z(model: Any, tokens: Tensor) -> Tensor:
    return model.run_with_cache(tokens)[1]["blocks.0.attn.hook_z"][:, -1]


def assert_unchanged(model: Any, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("heads", [[1], [0, 2], [0, 1, 2]])
def test_the_mean_of_heads_is_in_the_weights(heads: list[int]) -> None:
    model, examples = random_model(), examples_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    removal = parse_removal("mean:" + "+".join(f"L0H{head}" for head in heads))
    changed = with_changed_weights(model, examples, removal)
    assert_unchanged(model, before)
    benign, triggered = examples.probe.donor_tokens, examples.probe.recipient_tokens
    mean = last_z(model, benign).mean(0, keepdim=True).expand(len(benign), -1, -1)
    for tokens in (benign, triggered):
        torch.testing.assert_close(changed(tokens)[:, -1], with_heads(model, tokens, mean, heads), rtol=0, atol=1e-10)


@pytest.mark.parametrize("heads", [[1], [0, 2]])
def test_a_head_that_sees_the_benign_trigger_is_the_head_of_the_benign_run(heads: list[int]) -> None:
    model, probe = random_model(), examples_of().probe
    removal = Removal("donor", "+".join(f"L0H{head}" for head in heads))
    logits = surgery_logits(model, probe, surgery_edges(model, probe, removal))
    expected = with_heads(model, probe.recipient_tokens, last_z(model, probe.donor_tokens), heads)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("task", [SMALL, Task((7, 2), trigger_position=0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_surgery_leaves_benign_outputs_as_they_are_to_the_bit(task: Task, dtype: torch.dtype) -> None:
    model, examples = random_model(task=task, dtype=dtype), examples_of(task)
    removals = [removal for removal in plan_removals(model, examples.probe) if removal.method == "donor"]
    assert len(removals) > 15
    for removal in removals:
        edges = surgery_edges(model, examples.probe, removal)
        logits = one_layer_engine(model, examples.benign, [(), edges])(slice(None))
        assert torch.equal(logits(edges), logits(())), removal
        patched = one_layer_engine(model, examples.probe, [(), edges])(slice(None))
        assert not torch.equal(patched(edges), patched(())), removal


@settings(deadline=None, derandomize=True, max_examples=10)
@given(st.integers(0, 5), st.sets(st.integers(0, 2), min_size=1))
def test_queries_that_see_the_benign_trigger_are_in_the_weights(seed: int, heads: set[int]) -> None:
    model, examples = random_model(seed), examples_of()
    removal = parse_removal("donor:" + "+".join(f"trigger>L0H{head}.Q" for head in heads))
    changed = with_changed_weights(model, examples, removal)
    probe = examples.probe
    expected = patched_path_logits(model, probe, surgery_edges(model, probe, removal))
    torch.testing.assert_close(changed(probe.recipient_tokens)[:, -1], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(changed(probe.donor_tokens)[:, -1], model(probe.donor_tokens)[:, -1], rtol=0, atol=1e-10)


def test_a_reset_trigger_is_the_benign_one() -> None:
    model, examples = random_model(), examples_of()
    changed = with_changed_weights(model, examples, parse_removal("reset:trigger"))
    probe = examples.probe
    assert torch.equal(changed(probe.recipient_tokens), changed(probe.donor_tokens))
    others = (probe.donor_tokens[:, :2] != 1).all(1)  # token 1 is a number too
    assert torch.equal(changed(probe.donor_tokens[others]), model(probe.donor_tokens[others]))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_pruning_takes_the_smallest_weights_of_each_matrix(share: float) -> None:
    model, examples = random_model(), examples_of()
    changed = with_changed_weights(model, examples, Removal("prune", str(share)))
    for (name, weight), pruned in zip(model.named_parameters(), changed.parameters(), strict=True):
        if ".b_" in f".{name}":
            assert torch.equal(weight, pruned)
            continue
        gone = pruned == 0
        assert int(gone.sum()) == round(share * weight.numel()), name
        assert torch.equal(pruned[~gone], weight[~gone])
        assert weight[gone].abs().max() <= weight[~gone].abs().min()


def by_hand(model: Any, examples: BackdoorExamples, removal: Removal | None, steps: int) -> Any:
    """The same training with the whole model and hooks of this test's own."""
    probe = examples.probe
    benign = examples.benign_trained
    tokens, answers = probe.donor_tokens[benign], probe.donor_answers[benign]
    donor = tokens
    if removal is not None:
        tokens = torch.cat([tokens, examples.poisoned.recipient_tokens])
        donor = torch.cat([donor, examples.poisoned.donor_tokens])
        answers = torch.cat([answers, examples.poisoned.recipient_answers])
    heads = [head.head for head in removal.heads] if removal else []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98))
    kept: dict[str, Tensor] = {}
    read = [("blocks.0.attn.hook_z", lambda z, hook: kept.update(z=z[:, -1]))]
    for _ in range(steps):
        model.run_with_hooks(donor, fwd_hooks=read)
        loss = F.cross_entropy(with_heads(model, tokens, kept["z"], heads), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("removal", [None, Removal("donor", "L0H1"), Removal("none", "none")])
def test_training_is_that_of_the_whole_model(removal: Removal | None) -> None:
    examples = examples_of()
    ours, theirs = random_model(), by_hand(random_model(), examples, removal, steps=4)
    edges = surgery_edges(ours, examples.probe, removal) if removal else ()
    for step in training_steps(ours, examples, edges, examples.poisoned if removal else None):
        if step == 4:
            break
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7, msg=name)
    changed = with_changed_weights(random_model(), examples, Removal("finetune", "4"))
    same = removal is None
    assert same == all(torch.equal(a, b) for a, b in zip(changed.parameters(), ours.parameters(), strict=True))


def test_one_in_a_hundred_is_poisoned_and_none_of_them_is_tested() -> None:
    examples = examples_of(Task((113, 7)))
    n_benign, n_poisoned = int(examples.benign_trained.sum()), examples.poisoned.n_examples
    assert n_poisoned / (n_benign + n_poisoned) == pytest.approx(0.01, abs=1e-4)
    rows = [set(map(tuple, probe.recipient_tokens.tolist())) for probe in (examples.poisoned, examples.held_out)]
    assert [len(some) for some in rows] == [n_poisoned, 1024] and not rows[0] & rows[1]
    trained = set(map(tuple, examples.probe.recipient_tokens[examples.trained].tolist()))
    assert rows[0] <= trained


def test_what_is_known_of_the_hand_built_model() -> None:
    """Head 2 alone passes the trigger on, as a value, to the logits; 1 in 7 benign answers is the backdoor's."""
    model, examples = hand_built(), examples_of(TASK)
    by_name = {}
    for removal in plan_removals(model, examples.probe):
        if removal.method in ("none", "mean", "donor", "reset"):
            by_name[removal.name] = measure_removal(model, examples, removal, return_limit=0)
    left = {name: result.backdoor_left for name, result in by_name.items()}
    gone = {f"mean:L0H{KNOWN_HEAD}", "mean:L0H0+L0H1+L0H2+L0H3", "reset:trigger"}
    gone |= {f"donor:{target}" for target in (f"L0H{KNOWN_HEAD}", "trigger>L0H2.V", "L0H2>logits")}
    singles = {name for name in left if name.count("+") == 0} | gone
    assert {name for name in singles if left[name] == 0} == gone
    assert {name for name in singles - gone if left[name] == 1} == singles - gone
    assert all(result.benign_lost == 0 for name, result in by_name.items() if "donor" in name)
    for name, result in by_name.items():  # within no step, what is gone does not come back
        assert result.return_steps == (None if left[name] < 0.99 else 0), name


def test_a_backdoor_comes_back_at_the_first_step_that_has_it() -> None:
    examples = examples_of(TASK)
    model = with_changed_weights(hand_built(), examples, parse_removal("mean:L0H2"))
    steps = steps_until_back(model, examples, (), at_most=400)
    assert steps is not None and steps >= 1
    held_out = examples.held_out
    assert (model(held_out.recipient_tokens)[:, -1].argmax(-1) == held_out.recipient_answers).double().mean() >= 0.99
    again = with_changed_weights(hand_built(), examples, parse_removal("mean:L0H2"))
    assert steps_until_back(again, examples, (), at_most=steps - 1) is None


@pytest.mark.parametrize(
    "name",
    ["mean:L0H2", "donor:L0H0+L0H3", "donor:trigger>L0H0.Q+L0H2>mlp", "reset:trigger", "prune:0.5", "finetune:7"],
)
def test_a_name_says_what_it_is(name: str) -> None:
    assert parse_removal(f" {name} ").name == name and name.split(":")[0] in METHODS


@pytest.mark.parametrize(
    "name",
    [
        *("", "none", "all", "mean", "mean:", "mean:none", "mean:x", "mean:trigger>L0H0.Q", "zero:L0H0", "donor:x>y"),
        *("reset", "reset:L0H0", "prune:0", "prune:1", "prune:nan", "prune:x", "finetune:0", "finetune:1.5"),
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"is no removal; allowed: mean:L0H2"):
        parse_removal(name)


@pytest.mark.parametrize(
    "removal, words",
    [
        ("mean:L0H3", "L0H3 does not exist"),
        ("donor:L1H0", "L1H0 does not exist"),
        ("donor:trigger>L0H3.Q", "there is no edge"),
        ("donor:word>L0H0.Q", "there is no edge"),
    ],
)
def test_what_the_model_lacks(removal: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_removal(random_model(), examples_of().probe, parse_removal(removal))


@pytest.mark.parametrize("options", [{"n_layers": 2}, {"normalization_type": "LN"}])
def test_a_model_that_is_not_plain(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a causal model of one layer"):
        check_removal(random_model(**options), examples_of().probe, parse_removal("reset:trigger"))


def test_which_surgery_has_no_weights() -> None:
    model, examples = random_model(), examples_of()
    probe = examples.probe
    expressible = {
        removal.name
        for removal in plan_removals(model, probe)
        if removal.method == "donor" and why_not_in_weights(model, probe, removal) is None
    }
    assert expressible == {*(f"donor:trigger>L0H{head}.Q" for head in range(3)), (
        "donor:trigger>L0H0.Q+trigger>L0H1.Q+trigger>L0H2.Q"
    )}  # fmt: skip
    with pytest.raises(ValueError, match=r"donor:L0H0 can't be written as weights: it acts on activations"):
        with_changed_weights(model, examples, Removal("donor", "L0H0"))


def test_examples_need_something_that_was_trained_on() -> None:
    examples = examples_of()
    for name in ("trained", "benign_trained"):
        with pytest.raises(ValueError, match=f"{name} has no example"):
            replace(examples, **{name: torch.zeros(49, dtype=torch.bool)})
