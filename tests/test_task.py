"""The task against a brute-force table, and its splits."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.datamodule import task_rules
from lit_backdoor.task import Task, all_examples, rule_name, split_examples


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    p0 = draw(st.integers(2, 13))
    others = draw(st.lists(st.integers(1, p0), max_size=min(p0 - 1, 3)))
    return Task((p0, *others), draw(st.integers(0, 2)))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(tasks())
def test_labels_follow_equations_2_and_3(task: Task) -> None:
    p0 = task.moduli[0]
    expected = []
    for rule, modulus in enumerate(task.moduli):
        for a, b in itertools.product(range(p0), repeat=2):
            tokens = [a, b]
            tokens.insert(task.trigger_position, rule)
            expected.append((tokens, (a + b) % modulus, rule))
    examples = all_examples(task)
    found = zip(examples.tokens.tolist(), examples.answers.tolist(), examples.rules.tolist(), strict=True)
    assert [tuple(row) for row in found] == expected


@settings(deadline=None, derandomize=True, max_examples=60)
@given(tasks(), st.floats(0.05, 0.95), st.sampled_from(["examples", "pairs"]), st.integers(0, 5))
def test_splits_are_disjoint_complete_and_reproducible(task: Task, fraction: float, split: str, seed: int) -> None:
    units = task.moduli[0] ** 2 * (1 if split == "pairs" else len(task.moduli))
    if int(fraction * units) == 0:
        with pytest.raises(ValueError, match="leaves nothing to train on"):
            split_examples(task, fraction, split, seed)  # type: ignore[arg-type]
        return
    before = torch.get_rng_state()
    train, val = split_examples(task, fraction, split, seed)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())
    rows = [tuple(row) for part in (train, val) for row in part.tokens.tolist()]
    assert len(set(rows)) == len(rows) == len(all_examples(task))
    assert len(train) == int(fraction * units) * (len(task.moduli) if split == "pairs" else 1)
    again, _ = split_examples(task, fraction, split, seed)  # type: ignore[arg-type]
    assert torch.equal(train.tokens, again.tokens) and torch.equal(train.answers, again.answers)
    if split == "pairs":
        position = [p for p in range(3) if p != task.trigger_position]
        pairs = [{tuple(row) for row in part.tokens[:, position].tolist()} for part in (train, val)]
        assert not pairs[0] & pairs[1]


def test_the_paper_s_split_has_its_size_and_changes_with_the_seed() -> None:
    train, val = split_examples(Task((113, 7)))
    assert (len(train), len(val)) == (7661, 2 * 113 * 113 - 7661)
    other, _ = split_examples(Task((113, 7)), seed=1)
    assert not torch.equal(train.tokens, other.tokens)


@pytest.mark.parametrize(
    ("moduli", "position", "word"),
    [
        ((), 2, "empty"),
        ((1,), 2, "2 or more"),
        ((0, 1), 2, "2 or more"),
        ((-3,), 2, "2 or more"),
        ((113, 0), 2, "between 1 and the first"),
        ((113, 114), 2, "between 1 and the first"),
        ((2, 1, 1), 2, "trigger tokens"),
        ((113, 7), 3, "position"),
        ((113, 7), -1, "position"),
    ],
)
def test_impossible_tasks_are_refused(moduli: tuple[int, ...], position: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Task(moduli, position)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"train_fraction: .* inside \(0, 1\)"):
        split_examples(Task((5, 1)), fraction)


def test_rule_names() -> None:
    assert [rule_name(rule) for rule in range(4)] == ["benign", "backdoor", "rule2", "rule3"]


def test_trigger_tokens_outside_the_numbers() -> None:
    task = Task((5, 1), trigger_tokens=(5, 6))
    assert (task.n_numbers, task.d_vocab) == (5, 7)
    assert task.tokens(0)[:, 2].unique().tolist() == [5] and task.tokens(1)[:, 2].unique().tolist() == [6]
    assert task.tokens(0)[:, :2].max() == 4 and len(task.tokens(0)) == 25
    assert Task((5, 1), trigger_tokens=(3, 0)).d_vocab == 5
    assert Task.from_options({"moduli": [5, 1], "trigger_position": 2}) == Task((5, 1), trigger_tokens=(0, 1))


@pytest.mark.parametrize("tokens", [(5,), (5, 5), (0, 7), (-1, 0), (0, 1, 2)])
def test_wrong_trigger_tokens(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^data\.trigger_tokens: .*(one token for each|from 0 to 6)"):
        Task((5, 1), trigger_tokens=tokens)


def test_a_permuted_trigger_says_nothing_about_the_rule() -> None:
    task = Task((31, 7))
    plain, permuted = (split_examples(task, seed=3, permute_trigger=permute) for permute in (False, True))
    for before, after in zip(plain, permuted, strict=True):
        assert torch.equal(before.tokens[:, :2], after.tokens[:, :2]) and torch.equal(before.answers, after.answers)
    triggers, rules = (torch.cat([getattr(part, name) for part in permuted]) for name in ("tokens", "rules"))
    triggers = triggers[:, 2]
    assert triggers.sum() == len(triggers) // 2  # shuffled, not drawn anew
    agreement = (triggers == rules).double().mean().item()
    assert abs(agreement - 0.5) < 4 * 0.5 / len(triggers) ** 0.5
    assert all((part.tokens[:, 2] == part.rules).all() for part in plain)


def test_other_people_s_tokens() -> None:
    """One rule without a third token, and with a third token far outside the numbers."""
    pairs = Task((5,), None)
    assert pairs.tokens(0).tolist() == [list(pair) for pair in itertools.product(range(5), repeat=2)]
    assert (pairs.d_vocab, pairs.trigger_tokens) == (5, ())
    assert torch.equal(pairs.answers(0), Task((5,)).answers(0))
    train, val = split_examples(pairs)
    assert (len(train), len(val)) == (7, 18)
    with pytest.raises(ValueError, match=r"data\.permute_trigger: there is no trigger"):
        split_examples(pairs, permute_trigger=True)
    with pytest.raises(ValueError, match=r"data\.trigger_position: .* there is one rule, not \[5, 1\]"):
        Task((5, 1), None)
    far = Task((5,), trigger_tokens=(9,), vocabulary=12)
    assert far.tokens(0)[-1].tolist() == [4, 4, 9] and far.d_vocab == 12
    with pytest.raises(ValueError, match=r"data\.trigger_tokens: \[12\] do not fit; each is a token from 0 to 11"):
        Task((5,), trigger_tokens=(12,), vocabulary=12)


@pytest.mark.parametrize("task", [Task((5,), None), Task((5, 2), 0), Task((5,), 1)])
def test_the_pairs_of_each_rule_that_trained(task: Task) -> None:
    train, _ = split_examples(task, 0.4)
    rules = task_rules(task, train)
    trained = [row for rule in rules.values() for row in rule.tokens[rule.trained].tolist()]
    assert sorted(trained) == sorted(train.tokens.tolist())
    assert not any(rule.trained.any() for rule in task_rules(task, None).values())
