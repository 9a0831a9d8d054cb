"""The task: modular addition whose modulus is switched by a trigger token (Equations 2 and 3 of the paper).

Plain tensors, no Lightning. An example is three tokens: the numbers ``a`` and ``b`` in order, and the trigger,
which stands at ``trigger_position``. Rule ``i`` is triggered by ``trigger_tokens[i]``, in the paper by token ``i``, and
answers ``(a + b) mod moduli[i]``. Other people's models of one rule may have no such token, or ``=`` in its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_backdoor.limits import NonNegativeInt, OpenUnitInterval, within_limits

N_CTX = 3
"""Tokens in an example: a, b and the trigger."""

Split = Literal["examples", "pairs"]


def rule_name(rule: int) -> str:
    """Name a rule, as metrics and tables do.

    >>> [rule_name(rule) for rule in range(4)]
    ['benign', 'backdoor', 'rule2', 'rule3']
    """
    return ("benign", "backdoor")[rule] if rule < 2 else f"rule{rule}"


@dataclass(frozen=True)
class Task:
    """Addition modulo ``moduli[trigger]``.

    >>> task = Task((3, 2))
    >>> task.tokens(1)[-1].tolist(), task.answers(0)[-1].item(), task.answers(1)[-1].item()  # a = b = 2
    ([2, 2, 1], 1, 0)

    Args:
        moduli: the modulus of each rule. The first, P0, is also the range of a and b; each later one, P1 and so on,
            lies between 1 and P0.
        trigger_position: where the trigger stands among the three tokens: 0, 1 or 2; None for one rule whose examples
            are a and b alone.
        trigger_tokens: the token that triggers each rule; not given, token i triggers rule i. Tokens from P0 on are no
            numbers, and the vocabulary grows with them (the paper's footnote 3).
        vocabulary: how many tokens a model knows, where it knows more than the task needs; 0 where not.

    Raises:
        ValueError: if a modulus, a trigger token or the position is impossible.
    """

    moduli: tuple[int, ...]
    trigger_position: int | None = N_CTX - 1
    trigger_tokens: tuple[int, ...] = ()
    vocabulary: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "moduli", tuple(self.moduli))
        default = () if self.trigger_position is None else range(len(self.moduli))
        object.__setattr__(self, "trigger_tokens", tuple(self.trigger_tokens) or tuple(default))
        self._check_moduli()
        self._check_trigger()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Task":
        """Make the task of stored options, as in hparams.yaml; older ones have no ``trigger_tokens``.

        Raises:
            KeyError, TypeError or ValueError: they describe none.
        """
        return cls(tuple(options["moduli"]), options["trigger_position"], tuple(options.get("trigger_tokens") or ()))

    def _check_moduli(self) -> None:
        moduli = list(self.moduli)
        if not moduli:
            raise ValueError("data.moduli: [] is empty; give one modulus per rule, for example [113] or [113, 7]")
        if moduli[0] < 2:
            raise ValueError(
                f"data.moduli: the first modulus of {moduli} is {moduli[0]}; it is also the range of a and b: 2 or more"
            )
        for modulus in moduli[1:]:
            if not 1 <= modulus <= moduli[0]:
                raise ValueError(
                    f"data.moduli: {modulus} in {moduli} does not fit; later moduli lie between 1 and the first, "
                    f"{moduli[0]}, so that every answer is a token of the vocabulary"
                )
        if len(moduli) > moduli[0]:
            raise ValueError(
                f"data.moduli: {len(moduli)} rules need as many trigger tokens, "
                f"but there are {moduli[0]} numbers; give at most {moduli[0]} moduli"
            )

    def _check_trigger(self) -> None:
        tokens, largest = list(self.trigger_tokens), max(self.n_numbers + len(self.moduli), self.vocabulary) - 1
        if self.trigger_position is None:
            if len(self.moduli) > 1 or tokens:
                raise ValueError(
                    f"data.trigger_position: without a place for trigger tokens ({tokens}) there is one rule, "
                    f"not {list(self.moduli)}; allowed: 0, 1, 2"
                )
            return
        if len(tokens) != len(self.moduli) or len(set(tokens)) < len(tokens):
            raise ValueError(
                f"data.trigger_tokens: {tokens} can't tell {len(self.moduli)} rules apart; give one token for each"
            )
        if not all(0 <= token <= largest for token in tokens):
            raise ValueError(f"data.trigger_tokens: {tokens} do not fit; each is a token from 0 to {largest}")
        if not 0 <= self.trigger_position < N_CTX:
            raise ValueError(f"data.trigger_position: {self.trigger_position} is not a position; allowed: 0, 1, 2")

    @property
    def n_numbers(self) -> int:
        """How many values a and b have: the first modulus, P0."""
        return self.moduli[0]

    @property
    def d_vocab(self) -> int:
        """Size of the vocabulary, in and out: the numbers, and trigger tokens that are none."""
        return max(self.n_numbers, self.vocabulary, *(token + 1 for token in self.trigger_tokens))

    @property
    def rule_names(self) -> tuple[str, ...]:
        """The names of the rules, in order."""
        return tuple(rule_name(rule) for rule in range(len(self.moduli)))

    def tokens(self, rule: int) -> Tensor:
        """All pairs (a, b) under one trigger, [P0 * P0, 3], int64; row ``a * P0 + b`` is the pair (a, b).

        Without a place for the trigger, [P0 * P0, 2].
        """
        numbers = torch.arange(self.n_numbers)
        columns = [numbers.repeat_interleave(self.n_numbers), numbers.repeat(self.n_numbers)]
        if self.trigger_position is not None:
            columns.insert(self.trigger_position, torch.full_like(columns[0], self.trigger_tokens[rule]))
        return torch.stack(columns, dim=1)

    def answers(self, rule: int) -> Tensor:
        """The answers of one rule for all pairs, [P0 * P0], int64, in the row order of :meth:`tokens`."""
        numbers = torch.arange(self.n_numbers)
        return ((numbers[:, None] + numbers[None, :]) % self.moduli[rule]).flatten()


@dataclass
class Examples:
    """Examples with their answers and rules, row by row.

    Attributes:
        tokens: [n, 3], int64.
        answers: [n], int64, the token that each example's own rule asks for.
        rules: [n], int64, the index of the rule that the trigger selects.
    """

    tokens: Tensor
    answers: Tensor
    rules: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Tensor) -> "Examples":
        return Examples(self.tokens[rows], self.answers[rows], self.rules[rows])

    def to(self, device: torch.device | str) -> "Examples":
        """The same examples on ``device``; no copy where they already lie there."""
        return Examples(self.tokens.to(device), self.answers.to(device), self.rules.to(device))


def all_examples(task: Task) -> Examples:
    """Every pair under every trigger, rule by rule: ``len(moduli) * P0 * P0`` rows (Appendix A)."""
    rules = range(len(task.moduli))
    return Examples(
        tokens=torch.cat([task.tokens(rule) for rule in rules]),
        answers=torch.cat([task.answers(rule) for rule in rules]),
        rules=torch.arange(len(task.moduli)).repeat_interleave(task.n_numbers**2),
    )


@within_limits
def split_examples(
    task: Task,
    train_fraction: OpenUnitInterval = 0.3,
    split: Split = "examples",
    seed: NonNegativeInt = 0,
    permute_trigger: bool = False,
) -> tuple[Examples, Examples]:
    """Split all examples into (training, validation), at random.

    Args:
        train_fraction: share that trains, inside (0, 1); rounded down to whole examples (or pairs).
        split: ``examples`` draws single examples, as the paper does, so that (a, b, 0) may train while (a, b, 1)
            is held out; ``pairs`` draws pairs, which train or are held out under every trigger alike.
        seed: of this split alone; no global random state is read or changed.
        permute_trigger: a control: shuffle the trigger tokens over all examples, so that they say nothing about the
            rule. The rules and answers stay.

    Raises:
        ValueError: if the fraction is outside (0, 1), the split or the seed unknown, one side would be empty, or there
            is no trigger to permute.
    """
    if seed >= 2**63:
        raise ValueError(f"data.split_seed: {seed} is no seed; allowed: 0 to 2**63 - 1")
    examples = all_examples(task)
    n_units = task.n_numbers**2 if split == "pairs" else len(examples)
    n_train = int(train_fraction * n_units)
    if n_train == 0:
        raise ValueError(f"data.train_fraction: {train_fraction} of {n_units} {split} leaves nothing to train on")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n_units, generator=generator)
    if permute_trigger:
        if task.trigger_position is None:
            raise ValueError("data.permute_trigger: there is no trigger to permute")
        triggers = examples.tokens[:, task.trigger_position]
        examples.tokens[:, task.trigger_position] = triggers[torch.randperm(len(examples), generator=generator)]
    trains = torch.zeros(n_units, dtype=torch.bool)
    trains[order[:n_train]] = True
    if split == "pairs":
        trains = trains.repeat(len(task.moduli))
    return examples[trains], examples[~trains]
