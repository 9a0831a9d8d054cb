"""Path patching during training: through which edges the answer comes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_backdoor.callbacks.charts import Charts, curve_patterns
from lit_backdoor.callbacks.probing import Measurement, ProbeCallback, Probes
from lit_backdoor.functional import (
    EdgeSet,
    HookedModel,
    PathPatchingResult,
    Probe,
    all_edges,
    default_edge_sets,
    edge_groups,
    patch_paths,
)
from lit_backdoor.functional.hooked_paths import with_all_inputs_hooked
from lit_backdoor.limits import NonNegativeInt, PositiveInt, within_limits
from lit_backdoor.runs.schema import result_rows

GroupAccuracies = dict[str, tuple[float, float]]
"""Recipient's and donor's accuracy by the edges that see the donor: ``none``, or the name of a group."""


class PathPatchingMonitor(ProbeCallback):
    """Lets chosen edges of the recipient's run see the donor's, into ``path_patching.csv``.

    Head patching says that a head matters, path patching how: by what turns its query, attracts it as a key or is what
    it copies, and whether an MLP or the logits read the result. Every probe patches nothing and the groups of edges
    (see :data:`lit_backdoor.functional.EdgeGroup`); every ``full_every_n_steps`` and at the last step, single edges.

    A HookedTransformer of any depth is measured as it is; the hook points that this takes are switched on for the
    measurement alone. Edges are not additive: a set is another question than its members.

    Args:
        every_n_steps: Optimizer steps between two probes, step 0 included. The last step is always probed.
        full_every_n_steps: Optimizer steps between two probes of single edges (of models with up to 128 edges).
        max_examples: Measure no more than so many examples of a probe, drawn at random once; null: all.
        probes: What to measure on, by name, or a function that returns it (in YAML its import path); null asks the
            datamodule.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
        name: Tells monitors of one class apart, in file names and in TensorBoard.
        dense_until: Optimizer step up to which more steps are probed; see :class:`lit_backdoor.callbacks.Schedule`.
    """

    table_name = "path_patching"

    @within_limits
    def __init__(
        self,
        every_n_steps: PositiveInt = 200,
        full_every_n_steps: PositiveInt = 1000,
        max_examples: PositiveInt | None = None,
        probes: Probes | Callable[[], Probes] | None = None,
        model_attr: str = "model",
        name: str = "",
        dense_until: NonNegativeInt = 0,
    ) -> None:
        super().__init__(every_n_steps, probes, model_attr, name, dense_until, max_examples)
        self.full_every_n_steps = full_every_n_steps
        self.history: dict[str, dict[int, GroupAccuracies]] = {}
        """Per probe and step, what is left with each group patched."""

    @property
    def picture_every_n_steps(self) -> int:
        """Pictures come with full measurements."""
        return self.full_every_n_steps

    def state_dict(self) -> dict[str, Any]:
        """The history, as plain numbers."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history back."""
        self.history = state_dict["history"]

    def forget(self, from_step: int) -> None:
        """Drop the history from a step on."""
        self.history = {
            probe: {step: groups for step, groups in by_step.items() if step < from_step}
            for probe, by_step in self.history.items()
        }

    def check_probe(self, model: HookedModel, probe: Probe) -> None:
        """Also patch one example, to see whether the model has the hook points.

        Raises:
            ValueError: it has not; the message names the fix.
        """
        super().check_probe(model, probe)
        with with_all_inputs_hooked(model):
            patch_paths(model, probe.rows(slice(1)), [(), all_edges(model, probe.rows(slice(1)))])

    def measure(self, model: HookedModel, step: int, last: bool) -> Measurement:
        """One row per probe and set of edges: see :class:`lit_backdoor.functional.PathPatchingResult`."""
        full = last or self.has_come(self.full_every_n_steps, step)
        self.forget(step)
        measured, results = Measurement([]), {}
        with with_all_inputs_hooked(model):
            for name, probe in self.probes.items():
                results[name] = patch_paths(model, probe, _edge_sets(model, probe, full))
        for name, of_probe in results.items():
            measured.rows += result_rows(step, name, of_probe)
            groups = {result.group or "none": result for result in of_probe if result.group or not result.edges}
            self.history.setdefault(name, {})[step] = {
                group: (result.recipient_accuracy, result.donor_accuracy) for group, result in groups.items()
            }
            for group, result in groups.items():
                measured.numbers |= {f"paths_{name}/{tag}/{group}": value for tag, value in _scalars(result).items()}
        if self.draws(step, last):
            self._draw(measured, results)
        return measured

    def custom_scalars(self) -> Charts:
        """One chart per probe and quantity, with a curve for nothing patched and for each group of edges."""
        return {
            f"{self.prefix}paths {name}: {probe.donor} into {probe.recipient}": {
                metric: curve_patterns(f"{self.prefix}paths_{name}", metric)
                for metric in (f"{probe.recipient}_accuracy", f"{probe.donor}_accuracy", "logit_diff", "log_prob")
            }
            for name, probe in self.probes.items()
        }

    def _draw(self, measured: Measurement, results: Mapping[str, Sequence[PathPatchingResult]]) -> None:
        from lit_backdoor.show.circuit import circuit_figure
        from lit_backdoor.show.training import edge_groups_figure

        for name, probe in self.probes.items():
            figure = edge_groups_figure(self.history[name], probe.recipient, probe.donor)
            measured.figures[f"figures/{self.prefix}paths_{name}"] = figure
            if any(len(result.edges) == 1 for result in results[name]):
                measured.figures[f"figures/{self.prefix}circuit_{name}"] = circuit_figure(results[name])


def _edge_sets(model: HookedModel, probe: Probe, full: bool) -> Sequence[EdgeSet]:
    return default_edge_sets(model, probe) if full else [(), *edge_groups(model, probe).values()]


def _scalars(result: PathPatchingResult) -> dict[str, float]:
    return {
        f"{result.recipient}_accuracy": result.recipient_accuracy,
        f"{result.donor}_accuracy": result.donor_accuracy,
        "logit_diff": result.logit_diff,
        "log_prob": result.log_prob,
        **result.extra,
    }
