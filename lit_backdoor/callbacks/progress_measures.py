"""Progress measures of modular addition, during training. This one knows the task: rules that add modulo something."""

import re
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any

from lit_backdoor.callbacks.charts import Charts, curve_patterns
from lit_backdoor.callbacks.probing import Measurement, ProbeCallback
from lit_backdoor.callbacks.run import ContractError, imported
from lit_backdoor.functional import HeadProgress, HookedModel, RuleExamples, head_name, rule_progress
from lit_backdoor.limits import NonNegativeInt, PositiveInt, within_limits
from lit_backdoor.runs.schema import read_results, result_rows

Rules = Mapping[str, RuleExamples]
"""All pairs under the trigger of each rule, by the rule's name; the first is the benign one."""


LOSSES = ("restricted_loss", "excluded_loss")
"""What a chart shows together."""


class ProgressMeasureMonitor(ProbeCallback):
    """How far waves in a + b explain each rule, and its gradient on each head, into ``progress_measures.csv``.

    Key frequencies, restricted and excluded loss (Nanda et al., arXiv 2301.05217), for each rule in the waves of its
    own modulus; norms of the weights; each rule's share of the gradient on each head, and whether it pulls against the
    benign rule's. It needs no probes, but the rules: given here, or by ``trainer.datamodule.rules()``. The model's
    heads must have the parameters that :func:`lit_backdoor.functional.head_gradients` names. The column ``probe`` has
    the rule's name.

    Args:
        every_n_steps: Optimizer steps between two probes, step 0 included. The last step is always probed.
        rules: All pairs of each rule, by name, or a function that returns them (in YAML its import path); null asks the
            datamodule.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
        name: Tells monitors of one class apart, in file names and in TensorBoard.
        dense_until: Optimizer step up to which more steps are probed; see :class:`lit_backdoor.callbacks.Schedule`.
    """

    table_name = "progress_measures"

    @within_limits
    def __init__(
        self,
        every_n_steps: PositiveInt = 1000,
        rules: Rules | Callable[[], Rules] | None = None,
        model_attr: str = "model",
        name: str = "",
        dense_until: NonNegativeInt = 0,
    ) -> None:
        super().__init__(every_n_steps, None, model_attr, name, dense_until)
        self.rules: Rules = {}
        """The rules in use, from :meth:`check_model` on."""
        self.history: dict[str, dict[int, list[HeadProgress]]] = {}
        """Per rule and step, one result for each head."""
        self._given_rules = imported(f"{type(self).__name__}.rules", rules)

    def state_dict(self) -> dict[str, Any]:
        """The history, as the rows of the table."""
        return {
            "history": {
                rule: {step: result_rows(step, rule, results) for step, results in by_step.items()}
                for rule, by_step in self.history.items()
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history back; checkpoints of older versions have none."""
        self.history = {
            rule: {step: read_results(HeadProgress, rows) for step, rows in by_step.items()}
            for rule, by_step in state_dict.get("history", {}).items()
        }

    def forget(self, from_step: int) -> None:
        """Drop the history from a step on."""
        self.history = {
            rule: {step: results for step, results in by_step.items() if step < from_step}
            for rule, by_step in self.history.items()
        }

    def check_model(self, model: HookedModel, datamodule: Any, monitors: Sequence[Any]) -> None:
        """Take the rules, and make sure that they can be measured, by doing it once.

        Raises:
            ContractError: naming what is missing, together with the fix.
        """
        self.check_name(monitors)
        source = self._given_rules if self._given_rules is not None else getattr(datamodule, "rules", None)
        rules = source() if callable(source) else source
        if not isinstance(rules, Mapping) or not all(isinstance(rule, RuleExamples) for rule in rules.values()):
            raise ContractError(
                f"{type(self).__name__} has no rules: pass rules={{'name': RuleExamples(...)}}, or a function that "
                "returns them, or give the datamodule a method rules() that does"
            )
        self.rules = rules
        if not any(bool(rule.trained.any()) for rule in rules.values()):
            raise ContractError(f"{type(self).__name__}.rules: no pair is trained on; mark one or more in `trained`")
        try:
            rule_progress(model, rules)
        except (ValueError, AttributeError, IndexError) as error:  # IndexError: an answer that it lacks
            raise ContractError(f"{type(self).__name__} can't measure these rules on this model: {error}") from None

    def measure(self, model: HookedModel, step: int, last: bool) -> Measurement:
        """One row per rule and head: see :class:`lit_backdoor.functional.HeadProgress`. The last step draws them."""
        self.forget(step)
        measured = Measurement([])
        for rule, results in rule_progress(model, self.rules).items():
            self.history.setdefault(rule, {})[step] = results
            measured.rows += result_rows(step, rule, results)
            numbers = {name: getattr(results[0], name) for name in ("explained", "constant", *LOSSES)}
            for result in results:
                head = head_name(*result.head)
                numbers |= {f"gradient_share/{head}": result.gradient_share, f"cosine/{head}": result.cosine}
            measured.numbers |= {f"progress_{rule}/{tag}": value for tag, value in numbers.items() if not isnan(value)}
        if last:
            from lit_backdoor.show.training import progress_figure

            measured.figures[f"figures/{self.file_stem}"] = progress_figure(self.history)
        return measured

    def custom_scalars(self) -> Charts:
        """The rules' losses, and charts of the heads' gradients for each rule."""
        charts: Charts = {}
        for rule in self.rules:
            tags = f"{self.prefix}progress_{rule}"
            charts[f"{self.prefix}progress {rule}"] = {
                "losses": [f"{re.escape(tags)}/{loss}" for loss in LOSSES],
                "gradient_share": curve_patterns(tags, "gradient_share"),
                "cosine": curve_patterns(tags, "cosine"),
            }
        return charts
