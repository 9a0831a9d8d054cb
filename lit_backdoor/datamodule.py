"""Full-batch data: all training examples are one batch that lies on the device and is handed out again and again."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_backdoor.functional import Probe, RuleExamples
from lit_backdoor.limits import NonNegativeInt, OpenUnitInterval, PositiveInt, within_limits
from lit_backdoor.task import Examples, Split, Task, rule_name, split_examples

SPLIT_OPTIONS = {
    "train_fraction": "train_fraction",
    "split": "split",
    "split_seed": "seed",
    "permute_trigger": "permute_trigger",
}
"""Options of the datamodule that say which examples train, and the arguments of ``split_examples`` that they are."""


def split_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``split_examples`` that the options of a datamodule give."""
    return {argument: options[option] for option, argument in SPLIT_OPTIONS.items() if option in options}


class FullBatch:
    """A loader that yields the same batch ``repeats`` times, without copying or collating it.

    It has no position to restore (every batch is the same), which is what its empty state tells Lightning.
    """

    def __init__(self, batch: Examples, repeats: int = 1) -> None:
        self.batch = batch
        self.repeats = repeats

    def __len__(self) -> int:
        return self.repeats

    def __iter__(self) -> Iterator[Examples]:
        for _ in range(self.repeats):
            yield self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class BackdoorDataModule(LightningDataModule):
    """All pairs (a, b) under every trigger, split once at random into a training and a validation batch.

    Args:
        moduli: The modulus of each rule: [113] is the clean model, [113, 7] the mod 7 backdoor, [113, 1, 7] has two
            triggers. The first (2 or more) is also the range of a and b; the later ones lie between 1 and it.
        trigger_position: Where the trigger token stands among the three tokens: 0, 1 or 2.
        trigger_tokens: The token that triggers each rule; null: token i triggers rule i, as in the paper. Tokens from
            the first modulus on are no numbers; the vocabulary grows with them.
        permute_trigger: A control: shuffle the trigger tokens over the examples, so that they say nothing about the
            rule.
        train_fraction: Share of the examples that trains, inside (0, 1). All the rest validates.
        split: What is drawn at random: single examples, as in the paper, or pairs (a, b), which then train or are
            held out under every trigger alike.
        split_seed: Seed of the split alone.
        steps_per_epoch: Optimizer steps that make one Lightning epoch.
    """

    @within_limits
    def __init__(
        self,
        moduli: list[PositiveInt] = [113, 7],  # noqa: B006 (never changed; a list is what the command line shows)
        trigger_position: Literal[0, 1, 2] = 2,
        train_fraction: OpenUnitInterval = 0.3,
        split: Split = "examples",
        split_seed: NonNegativeInt = 0,
        steps_per_epoch: PositiveInt = 1000,
        trigger_tokens: list[NonNegativeInt] | None = None,
        permute_trigger: bool = False,
    ) -> None:
        super().__init__()
        self.task = Task(tuple(moduli), trigger_position, tuple(trigger_tokens or ()))
        self.train_examples, self.val_examples = split_examples(
            self.task, train_fraction, split, split_seed, permute_trigger
        )
        self.steps_per_epoch = steps_per_epoch
        self.save_hyperparameters()

    def probes(self) -> dict[str, Probe]:
        """What the monitors measure on: all pairs under one trigger, with those under another as donor.

        ``backdoor`` (and ``rule2`` ...): that rule's run receives, the benign run gives: what the rule needs.
        ``benign`` (and ``benign_rule2`` ...): the benign run receives, the backdoor's (``rule2``'s) gives: what
        suffices for it. In the clean model the benign run receives from other pairs of its own, fixed at random.
        """
        return task_probes(self.task)

    def rules(self) -> dict[str, RuleExamples]:
        """What the monitor of progress measures needs: all pairs of each rule, and which of them train."""
        return task_rules(self.task, self.train_examples)

    def donor_tokens(self, tokens: Tensor) -> Tensor:
        """Each example with the benign trigger: what a clamped head reads instead of ``tokens`` [n, 3].

        Raises:
            ValueError: no rule has another trigger.
        """
        if len(self.task.moduli) == 1:
            raise ValueError(f"data.moduli: {list(self.task.moduli)} has no trigger that a donor could lack")
        benign = tokens.clone()
        benign[:, self.task.trigger_position] = self.task.trigger_tokens[0]
        return benign

    def setup(self, stage: str) -> None:
        """Move both batches to the device, once."""
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            self.train_examples, self.val_examples = self.train_examples.to(device), self.val_examples.to(device)

    def train_dataloader(self) -> FullBatch:
        """The training batch, again for every optimizer step."""
        return FullBatch(self.train_examples, self.steps_per_epoch)

    def val_dataloader(self) -> FullBatch:
        """The validation batch, once."""
        return FullBatch(self.val_examples)

    def test_dataloader(self) -> FullBatch:
        """The same; there is no third part."""
        return FullBatch(self.val_examples)


def sufficiency_probe(rule: int) -> str:
    """Name of the probe that asks what suffices for a rule: ``benign``, then ``benign_rule2`` and so on."""
    return "benign" if rule == 1 else f"benign_{rule_name(rule)}"


def task_probes(task: Task) -> dict[str, Probe]:
    """The probes of a task by name; see :meth:`BackdoorDataModule.probes`."""

    def probe(recipient: int, donor: int) -> Probe:
        return Probe(
            task.tokens(recipient), task.tokens(donor), task.answers(recipient), task.answers(donor),
            recipient=rule_name(recipient), donor=rule_name(donor), sender="trigger",
        )  # fmt: skip

    n_rules = len(task.moduli)
    if n_rules > 1:
        needed = {rule_name(rule): probe(rule, 0) for rule in range(1, n_rules)}
        return needed | {sufficiency_probe(rule): probe(0, rule) for rule in range(1, n_rules)}
    other = torch.randperm(task.n_numbers**2, generator=torch.Generator().manual_seed(0))
    tokens, answers = task.tokens(0), task.answers(0)
    return {"benign": Probe(tokens, tokens[other], answers, answers[other], recipient="benign", donor="other_pair")}


def task_rules(task: Task, train: Examples | None) -> dict[str, RuleExamples]:
    """All pairs under each rule's trigger, by the rule's name, and which of them are among ``train``.

    Args:
        train: the examples that were trained on; None where nobody knows, then none counts as one.
    """
    rules = {}
    for rule, name in enumerate(task.rule_names):
        trained = torch.zeros(task.n_numbers**2, dtype=torch.bool)
        if train is not None:
            trained[_pairs_of_rule(task, rule, train.tokens.cpu())] = True
        rules[name] = RuleExamples(task.moduli[rule], task.tokens(rule), trained)
    return rules


def _pairs_of_rule(task: Task, rule: int, tokens: Tensor) -> Tensor:
    """The pairs under one rule's trigger among ``tokens`` [n, pos], each as ``a * P0 + b``."""
    if task.trigger_position is not None:
        tokens = tokens[tokens[:, task.trigger_position] == task.trigger_tokens[rule]]
    a, b = (tokens[:, position] for position in range(tokens.shape[1]) if position != task.trigger_position)
    return a * task.n_numbers + b
