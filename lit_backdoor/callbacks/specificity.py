"""What each head costs either rule, during training."""

from collections.abc import Callable
from math import isnan
from typing import Any

from lit_backdoor.callbacks.charts import Charts, curve_patterns
from lit_backdoor.callbacks.probing import Measurement, ProbeCallback, Probes
from lit_backdoor.functional import HeadSpecificity, HookedModel, head_name, head_specificity, parse_head_set
from lit_backdoor.limits import NonNegativeInt, PositiveInt, within_limits
from lit_backdoor.runs.schema import result_rows


class SpecificityMonitor(ProbeCallback):
    """What each head costs the backdoor, and what it costs the benign rule, into ``head_specificity.csv``.

    In general terms: the recipient's rule, and the donor's.

    A head that carries the backdoor alone costs the backdoor when it is given the benign activation, and the benign
    rule nothing when it is ablated in the benign run. Costs are shares of the accuracy above the floor, undefined (NaN)
    where a model does not show the rule; see :func:`lit_backdoor.functional.head_specificity`.

    Args:
        every_n_steps: Optimizer steps between two probes, step 0 included. The last step is always probed.
        probes: What to measure on, by name, or a function that returns it (in YAML its import path); null asks the
            datamodule.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
        name: Tells monitors of one class apart, in file names and in TensorBoard.
        dense_until: Optimizer step up to which more steps are probed; see :class:`lit_backdoor.callbacks.Schedule`.
        max_examples: Measure no more than so many examples of a probe, drawn at random once; null: all.
    """

    table_name = "head_specificity"

    @within_limits
    def __init__(
        self,
        every_n_steps: PositiveInt = 1000,
        probes: Probes | Callable[[], Probes] | None = None,
        model_attr: str = "model",
        name: str = "",
        dense_until: NonNegativeInt = 0,
        max_examples: PositiveInt | None = None,
    ) -> None:
        super().__init__(every_n_steps, probes, model_attr, name, dense_until, max_examples)
        self.history: dict[str, dict[int, list[HeadSpecificity]]] = {}
        """Per probe and step, what each head costs."""

    def state_dict(self) -> dict[str, Any]:
        """The history, as plain numbers."""
        return {
            "history": {
                probe: {
                    step: [
                        [head_name(*result.head), result.cost, result.donor_cost, result.selectivity]
                        for result in results
                    ]
                    for step, results in by_step.items()
                }
                for probe, by_step in self.history.items()
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history back."""
        self.history = {
            probe: {
                step: [HeadSpecificity(parse_head_set(head)[0], *numbers) for head, *numbers in results]
                for step, results in by_step.items()
            }
            for probe, by_step in state_dict["history"].items()
        }

    def forget(self, from_step: int) -> None:
        """Drop the history from a step on."""
        self.history = {
            probe: {step: results for step, results in by_step.items() if step < from_step}
            for probe, by_step in self.history.items()
        }

    def measure(self, model: HookedModel, step: int, last: bool) -> Measurement:
        """One row per probe and head: see :class:`lit_backdoor.functional.HeadSpecificity`. The last is drawn."""
        self.forget(step)
        measured = Measurement([])
        for name, probe in self.probes.items():
            results = head_specificity(model, probe)
            self.history.setdefault(name, {})[step] = results
            measured.rows += result_rows(step, name, results)
            for result in results:
                for metric in ("cost", "donor_cost"):
                    if not isnan(value := getattr(result, metric)):
                        measured.numbers[f"specificity_{name}/{metric}/{head_name(*result.head)}"] = value
        if last:
            from lit_backdoor.show.heads import specificity_figure

            measured.figures[f"figures/{self.file_stem}"] = specificity_figure(self.history)
        return measured

    def custom_scalars(self) -> Charts:
        """One chart per probe and quantity, with a curve for every head."""
        return {
            f"{self.prefix}specificity {name}": {
                metric: curve_patterns(f"{self.prefix}specificity_{name}", metric) for metric in ("cost", "donor_cost")
            }
            for name in self.probes
        }
