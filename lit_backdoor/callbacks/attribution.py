"""Head attribution during training."""

from lit_backdoor.callbacks.charts import Charts, curve_patterns
from lit_backdoor.callbacks.probing import Measurement, ProbeCallback
from lit_backdoor.functional import HookedModel, Probe, attribute_heads, cache_probes, head_name
from lit_backdoor.runs.schema import result_rows


class HeadAttributionMonitor(ProbeCallback):
    """Direct logit attribution of every head (the paper's Section 2.1), into ``head_attribution.csv``.

    Attribution is no ablation: it counts what a head writes straight to the logit of the recipient's answer, not what
    it does through the MLPs and the heads behind it. A final norm is taken as linear, its scale as a constant of each
    example; the column ``norm`` then says so, and so does the figure. Numbers are logits; ``top_share`` is a share of
    the examples.

    Args:
        every_n_steps: Optimizer steps between two probes, step 0 included. The last step is always probed.
        probes: What to measure on, by name, or a function that returns it (in YAML its import path); null asks the
            datamodule.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
        name: Tells monitors of one class apart, in file names and in TensorBoard.
        max_examples: Measure no more than so many examples of a probe, drawn at random once; null: all.
        dense_until: Optimizer step up to which more steps are probed; see :class:`lit_backdoor.callbacks.Schedule`.
    """

    table_name = "head_attribution"

    def check_probe(self, model: HookedModel, probe: Probe) -> None:
        """Also attribute one example, to see whether the model's logits can be split at all.

        Raises:
            ValueError: they can't; the message says why.
        """
        super().check_probe(model, probe)
        attribute_heads(model, probe.rows(slice(1)))

    def custom_scalars(self) -> Charts:
        """One chart per probe and quantity, with a curve for every head."""
        return {
            f"{self.prefix}attribution {name}": {
                metric: curve_patterns(f"{self.prefix}attribution_{name}", metric)
                for metric in ("mean_logit", "mean_logit_centered", "top_share")
            }
            for name in self.probes
        }

    def measure(self, model: HookedModel, step: int, last: bool) -> Measurement:
        """One row per probe and head: see :class:`lit_backdoor.functional.HeadAttribution`. Pictures: see
        :meth:`ProbeCallback.draws`."""
        from lit_backdoor.show.heads import attribution_figure

        caches = cache_probes(model, *self.probes.values())
        results = {name: attribute_heads(model, probe, caches) for name, probe in self.probes.items()}
        numbers = {}
        for name, heads in results.items():
            for result in heads:
                head = head_name(*result.head)
                numbers[f"attribution_{name}/mean_logit/{head}"] = result.mean_logit
                numbers[f"attribution_{name}/mean_logit_centered/{head}"] = result.mean_logit_centered
                numbers[f"attribution_{name}/top_share/{head}"] = result.top_count / result.n_examples
        rows = [row for name, heads in results.items() for row in result_rows(step, name, heads)]
        measured = Measurement(rows, numbers)
        if self.draws(step, last):
            measured.figures[f"figures/{self.file_stem}"] = attribution_figure(
                {f"{name} answers": heads for name, heads in results.items()}
            )
        return measured
