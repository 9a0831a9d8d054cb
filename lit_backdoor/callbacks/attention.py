"""Where the heads look, during training."""

from collections.abc import Callable
from typing import Any

from lit_backdoor.callbacks.charts import Charts, curve_patterns
from lit_backdoor.callbacks.probing import Measurement, ProbeCallback, Probes
from lit_backdoor.functional import (
    AttentionShift,
    HookedModel,
    PositionAttention,
    Probe,
    attention_by_position,
    attention_moved,
    compare_attention,
    head_name,
    parse_head_set,
)
from lit_backdoor.limits import NonNegativeInt, PositiveInt, within_limits
from lit_backdoor.runs.schema import result_rows


class AttentionMonitor(ProbeCallback):
    """Where each head looks from the read position and what the counterfactual changes, into ``attention.csv``.

    The model needs the hook points ``blocks.{layer}.attn.hook_pattern``. An :class:`EmergenceMonitor` beside it also
    says when attention was captured, before or after some head costs anything.

    Args:
        every_n_steps: Optimizer steps between two probes, step 0 included. The last step is always probed.
        probes: What to measure on, by name, or a function that returns it (in YAML its import path); null asks the
            datamodule.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
        name: Tells monitors of one class apart, in file names and in TensorBoard.
        dense_until: Optimizer step up to which more steps are probed; see :class:`lit_backdoor.callbacks.Schedule`.
    """

    table_name = "attention"

    @within_limits
    def __init__(
        self,
        every_n_steps: PositiveInt = 200,
        probes: Probes | Callable[[], Probes] | None = None,
        model_attr: str = "model",
        name: str = "",
        dense_until: NonNegativeInt = 0,
    ) -> None:
        super().__init__(every_n_steps, probes, model_attr, name, dense_until)
        self.history: dict[str, list[AttentionShift]] = {}
        """Per probe, how much of each head's attention the counterfactual moves, at every step so far."""

    def state_dict(self) -> dict[str, Any]:
        """The history, as plain numbers."""
        return {
            "history": {
                probe: [
                    [shift.step, {head_name(*head): value for head, value in shift.moved.items()}] for shift in shifts
                ]
                for probe, shifts in self.history.items()
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history back."""
        self.history = {
            probe: [
                AttentionShift(step, {parse_head_set(head)[0]: value for head, value in moved.items()})
                for step, moved in shifts
            ]
            for probe, shifts in state_dict["history"].items()
        }

    def forget(self, from_step: int) -> None:
        """Drop the history from a step on."""
        self.history = {
            probe: [shift for shift in shifts if shift.step < from_step] for probe, shifts in self.history.items()
        }

    def check_probe(self, model: HookedModel, probe: Probe) -> None:
        """Also read the attention of one example.

        Raises:
            ValueError: there is no hook point for it.
        """
        super().check_probe(model, probe)
        compare_attention(model, probe.rows(slice(1)))

    def measure(self, model: HookedModel, step: int, last: bool) -> Measurement:
        """One row per probe, head and position: see :class:`lit_backdoor.functional.PositionAttention`."""
        self.forget(step)
        measured, results = Measurement([]), {}
        for name, probe in self.probes.items():
            results[name] = attention_by_position(model, probe)
            measured.rows += result_rows(step, name, results[name])
            shift = AttentionShift(step, attention_moved(results[name]))
            self.history.setdefault(name, []).append(shift)
            measured.numbers |= {f"attention_{name}/moved/{head_name(*h)}": value for h, value in shift.moved.items()}
            for result in results[name]:
                if result.position == 0:  # these are a head's, the same at all its positions
                    head = head_name(*result.head)
                    measured.numbers[f"attention_{name}/entropy/{head}"] = result.entropy
                    measured.numbers[f"attention_{name}/output_change/{head}"] = result.output_change
        if last:
            self._draw(measured, results)
        return measured

    def custom_scalars(self) -> Charts:
        """One chart per probe and quantity, with a curve for every head."""
        return {
            f"{self.prefix}attention {name}": {
                metric: curve_patterns(f"{self.prefix}attention_{name}", metric)
                for metric in ("moved", "entropy", "output_change")
            }
            for name in self.probes
        }

    def _draw(self, measured: Measurement, results: dict[str, list[PositionAttention]]) -> None:
        from lit_backdoor.show.heads import attention_shift_figure

        measured.figures[f"figures/{self.file_stem}"] = attention_shift_figure(
            {f"{name}: {probe.recipient} minus {probe.donor}": results[name] for name, probe in self.probes.items()}
        )
