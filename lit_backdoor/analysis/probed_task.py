"""What a model is analyzed on: probes. Of the paper's task more is known than they say, of any other nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lit_backdoor.datamodule import task_probes, task_rules
from lit_backdoor.functional import Probe, RuleExamples
from lit_backdoor.task import Examples, Task


@dataclass(frozen=True, eq=False)
class ProbedTask:
    """Probes, and what else is known of the task.

    Attributes:
        title: what the model does, for headings.
        probes: by name.
        rules: the rules of modular addition, benign first, each by the name of the probe whose recipient follows it;
            empty for any other task.
        positions: what the positions of the examples are called; empty for their numbers.
    """

    title: str
    probes: Mapping[str, Probe]
    rules: Mapping[str, RuleExamples] = field(default_factory=dict)
    positions: Sequence[str] = ()


def probed_addition(task: Task, train: Examples | None) -> ProbedTask:
    """The paper's task.

    Args:
        train: the examples that the model was trained on; None where nobody knows.
    """
    positions = ["a", "b"]
    if task.trigger_position is not None:
        third = "trigger" if len(task.moduli) > 1 else f"token {task.trigger_tokens[0]}"
        positions.insert(task.trigger_position, third)
    title = f"a + b mod {', '.join(map(str, task.moduli))}"
    return ProbedTask(title, task_probes(task), task_rules(task, train), positions)
