"""How many neurons carry what the recipient does, during training."""

from lit_backdoor.callbacks.probing import Measurement, ProbeCallback
from lit_backdoor.functional import HookedModel, patch_neurons, why_not_linear
from lit_backdoor.runs.schema import result_rows


class NeuronMonitor(ProbeCallback):
    """How many neurons of the MLP a rule needs, and how many suffice for it, into ``neurons.csv``.

    The rule is the recipient's. Of the neurons that it needs, the table also counts those that the donor's rule needs.

    Neurons are patched by falling mediated effect; see :func:`lit_backdoor.functional.patch_neurons`.
    That is exact in plain one-layer models without norms. Others get no rows, and a text that says why.

    Args:
        every_n_steps: Optimizer steps between two probes, step 0 included. The last step is always probed.
        probes: What to measure on, by name, or a function that returns it (in YAML its import path); null asks the
            datamodule.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
        name: Tells monitors of one class apart, in file names and in TensorBoard.
        dense_until: Optimizer step up to which more steps are probed; see :class:`lit_backdoor.callbacks.Schedule`.
        max_examples: Measure no more than so many examples of a probe, drawn at random once; null: all.
    """

    table_name = "neurons"

    def measure(self, model: HookedModel, step: int, last: bool) -> Measurement:
        """One row per probe: see :class:`lit_backdoor.functional.NeuronCounts`."""
        if reason := why_not_linear(model):
            return Measurement([], texts={f"{self.file_stem}/not_measured": reason} if last else {})
        measured = Measurement([])
        for name, probe in self.probes.items():
            counts = patch_neurons(model, probe).counts
            measured.rows += result_rows(step, name, [counts])
            for metric, number in (("needed", counts.needed), ("sufficient", counts.sufficient)):
                if number is not None:
                    measured.numbers[f"neurons_{name}/{metric}"] = number
        return measured
