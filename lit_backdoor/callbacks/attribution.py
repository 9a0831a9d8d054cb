"""Head attribution during training."""

from lightning.pytorch import Trainer

from lit_backdoor.callbacks.charts import Charts, curves
from lit_backdoor.callbacks.probing import ProbeCallback
from lit_backdoor.callbacks.run import tensorboards
from lit_backdoor.functional import HeadAttribution, HookedModel, Probe, attribute_heads, cache_probes, head_name
from lit_backdoor.runs.schema import Value, result_rows


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
                metric: curves(f"{self.prefix}attribution_{name}", metric)
                for metric in ("mean_logit", "mean_logit_centered", "top_share")
            }
            for name in self.probes
        }

    def probe(self, trainer: Trainer, model: HookedModel, step: int, last: bool) -> list[dict[str, Value]]:
        """One row per probe and head: see :class:`lit_backdoor.functional.HeadAttribution`."""
        caches = cache_probes(model, *self.probes.values())
        results = {name: attribute_heads(model, probe, caches) for name, probe in self.probes.items()}
        numbers = {}
        for name, heads in results.items():
            for one in heads:
                head = head_name(*one.head)
                numbers[f"attribution_{name}/mean_logit/{head}"] = one.mean_logit
                numbers[f"attribution_{name}/mean_logit_centered/{head}"] = one.mean_logit_centered
                numbers[f"attribution_{name}/top_share/{head}"] = one.top_count / one.n_examples
        self.record(trainer, numbers, step)
        if last:
            self._draw(trainer, results, step)
        return [row for name, heads in results.items() for row in result_rows(step, name, heads)]

    def _draw(self, trainer: Trainer, results: dict[str, list[HeadAttribution]], step: int) -> None:
        from lit_backdoor.show.figures import attribution_figure

        for board in tensorboards(trainer):
            board.add_figure(f"figures/{self.file_stem}", attribution_figure(results), step)
