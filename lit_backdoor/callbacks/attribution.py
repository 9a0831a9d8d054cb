"""Head attribution during training."""

from lightning.pytorch import Trainer

from lit_backdoor.callbacks.probing import ProbeCallback
from lit_backdoor.callbacks.run import tensorboards
from lit_backdoor.functional import HeadAttribution, HookedModel, attribute_heads, cache_probes, head_name
from lit_backdoor.records import Value, attribution_rows


class HeadAttributionMonitor(ProbeCallback):
    """Direct logit attribution of every head (the paper's Section 2.1), into ``head_attribution.csv``.

    Attribution is no ablation: it counts what a head writes straight to the logits, not what it does through the MLP.

    Args:
        every_n_steps: Optimizer steps between two probes, step 0 included. The last step is always probed.
        probes: What to measure on, by name; null asks the datamodule.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
        name: Tells monitors of one class apart, in file names and in TensorBoard.
    """

    table_name = "head_attribution"

    def probe(self, trainer: Trainer, model: HookedModel, step: int, last: bool) -> list[dict[str, Value]]:
        """One row per probe and head."""
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
        return [row for name, heads in results.items() for row in attribution_rows(step, name, heads)]

    def _draw(self, trainer: Trainer, results: dict[str, list[HeadAttribution]], step: int) -> None:
        from lit_backdoor.plotting import attribution_figure

        for board in tensorboards(trainer):
            board.add_figure("figures/head_attribution", attribution_figure(results), step)
