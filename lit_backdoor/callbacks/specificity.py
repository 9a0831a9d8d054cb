"""What each head costs either rule, during training."""

from lit_backdoor.callbacks.charts import Charts, curves
from lit_backdoor.callbacks.probing import Measurement, ProbeCallback
from lit_backdoor.functional import HookedModel, head_name, head_specificity
from lit_backdoor.runs.schema import result_rows


class SpecificityMonitor(ProbeCallback):
    """What each head costs the recipient's rule (the backdoor) and the donor's (the benign one), into
    ``head_specificity.csv``.

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
    """

    table_name = "head_specificity"

    def measure(self, model: HookedModel, step: int, last: bool) -> Measurement:
        """One row per probe and head: see :class:`lit_backdoor.functional.HeadSpecificity`."""
        measured = Measurement([])
        for name, probe in self.probes.items():
            results = head_specificity(model, probe)
            measured.rows += result_rows(step, name, results)
            for one in results:
                for metric in ("cost", "donor_cost"):
                    measured.numbers[f"specificity_{name}/{metric}/{head_name(*one.head)}"] = getattr(one, metric)
        return measured

    def custom_scalars(self) -> Charts:
        """One chart per probe and quantity, with a curve for every head."""
        return {
            f"{self.prefix}specificity {name}": {
                metric: curves(f"{self.prefix}specificity_{name}", metric) for metric in ("cost", "donor_cost")
            }
            for name in self.probes
        }
