"""Head activation patching during training."""

from collections.abc import Callable, Sequence
from math import nan
from typing import Any

from lit_backdoor.callbacks.charts import Charts, curve_patterns
from lit_backdoor.callbacks.probing import Measurement, ProbeCallback, Probes
from lit_backdoor.functional import (
    Ablation,
    Head,
    HeadScores,
    HookedModel,
    PatchingResult,
    all_heads,
    cache_probes,
    default_head_sets,
    head_name,
    head_set_name,
    parse_head_set,
    patch_heads,
)
from lit_backdoor.functional.verdict import AllSets
from lit_backdoor.limits import NonNegativeInt, PositiveInt, within_limits
from lit_backdoor.runs.schema import Value, result_rows


class HeadPatchingMonitor(ProbeCallback):
    """Patches heads of each probe's recipient with the donor's (the paper's Section 2.2), into ``head_patching.csv``.

    Every probe patches nothing, each head alone and all heads; every ``full_every_n_steps`` and at the last step, all
    sets of heads. What the recipient's accuracy loses says what its answers *need*; what the donor's accuracy gains,
    what *suffices* for the donor's.

    Args:
        every_n_steps: Optimizer steps between two probes, step 0 included. The last step is always probed.
        full_every_n_steps: Optimizer steps between two probes of all sets of heads (up to 8 heads; beyond that also
            all but one).
        ablations: What replaces a head's activation: resample (the donor's for the same row), mean or zero.
        probes: What to measure on, by name, or a function that returns it (in YAML its import path); null asks the
            datamodule.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.
        name: Tells monitors of one class apart, in file names and in TensorBoard.
        dense_until: Optimizer step up to which more steps are probed; see :class:`lit_backdoor.callbacks.Schedule`.
        clamped: Measure the model as the Trainer's HeadClamp has it in the next training pass; a column ``clamped``
            names its heads. In a branch, table and verdict then begin with the branch, whose first step is probed.
    """

    table_name = "head_patching"

    @within_limits
    def __init__(
        self,
        every_n_steps: PositiveInt = 100,
        full_every_n_steps: PositiveInt = 1000,
        ablations: Sequence[Ablation] = ("resample",),
        probes: Probes | Callable[[], Probes] | None = None,
        model_attr: str = "model",
        name: str = "",
        dense_until: NonNegativeInt = 0,
        clamped: bool = False,
    ) -> None:
        super().__init__(every_n_steps, probes, model_attr, name, dense_until)
        self.clamped = clamped
        if not ablations:
            raise ValueError("HeadPatchingMonitor.ablations: none given; one or more of resample, mean, zero")
        self.full_every_n_steps = full_every_n_steps
        self.ablations = tuple(ablations)
        self.history: dict[str, list[HeadScores]] = {}
        """Per probe, the recipient's accuracy at every step so far: unpatched, each head alone, all heads; and, where
        the reversed probe is measured too, how often the donor's inputs give the recipient's answers."""
        self.all_sets: dict[str, AllSets] = {}
        """Per probe, the last measurement of all sets of heads."""

    @property
    def picture_every_n_steps(self) -> int:
        """Pictures come with full measurements."""
        return self.full_every_n_steps

    def state_dict(self) -> dict[str, Any]:
        """The history and the last measurement of all sets, as plain numbers."""
        return {
            "all_sets": {
                probe: [last.step, {head_set_name(heads): value for heads, value in last.accuracies.items()}]
                for probe, last in self.all_sets.items()
            },
            "history": {
                probe: [
                    [
                        entry.step,
                        entry.unpatched,
                        entry.all_patched,
                        {head_name(*h): value for h, value in entry.patched.items()},
                        entry.on_donor,
                    ]
                    for entry in scores
                ]
                for probe, scores in self.history.items()
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history back; older checkpoints do not hold what the model gives on the donor's inputs."""
        self.history = {
            probe: [
                HeadScores(
                    step, unpatched, {parse_head_set(h)[0]: v for h, v in patched.items()}, all_patched, *on_donor
                )
                for step, unpatched, all_patched, patched, *on_donor in scores
            ]
            for probe, scores in state_dict["history"].items()
        }
        self.all_sets = {
            probe: AllSets(step, {parse_head_set(name): value for name, value in accuracies.items()})
            for probe, (step, accuracies) in state_dict.get("all_sets", {}).items()
        }

    def forget(self, from_step: int) -> None:
        """Drop the history from a step on, and clamped in a branch, that of its parent."""
        self.history = {
            probe: [entry for entry in scores if self.since_step <= entry.step < from_step]
            for probe, scores in self.history.items()
        }
        self.all_sets = {
            probe: last for probe, last in self.all_sets.items() if self.since_step <= last.step < from_step
        }

    def measure(self, model: HookedModel, step: int, last: bool) -> Measurement:
        """One row per probe, ablation and set of heads: see :class:`lit_backdoor.functional.PatchingResult`.

        The last is written as the paper's Table 1. Pictures: see :meth:`ProbeCallback.draws`.
        """
        from lit_backdoor.show.markdown import patching_markdown

        heads = all_heads(model)
        n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
        full = last or self.has_come(self.full_every_n_steps, step)
        sets = default_head_sets(n_layers, n_heads) if full else [(), *((head,) for head in heads), heads]
        rows: list[dict[str, Value]] = []
        numbers: dict[str, float] = {}
        self.forget(step)
        first_ablation: dict[str, list[PatchingResult]] = {}
        caches = cache_probes(model, *self.probes.values())
        for name, probe in self.probes.items():
            for ablation in self.ablations:
                results = patch_heads(model, probe, sets, ablation, caches)
                rows += result_rows(step, name, results)
                if ablation == self.ablations[0]:
                    if len(sets) == 2 ** len(heads):
                        self.all_sets[name] = AllSets(
                            step, {result.heads: result.recipient_accuracy for result in results}
                        )
                    numbers |= _scalars(
                        name, [result for result in results if len(result.heads) in (0, 1, len(heads))], heads
                    )
                    first_ablation[name] = results
        for name, results in first_ablation.items():
            reverse = [other for other, probe in self.probes.items() if probe.reverses(self.probes[name])]
            on_donor = _unpatched(first_ablation[reverse[0]]).donor_accuracy if reverse else nan
            self.history.setdefault(name, []).append(_scores(step, results, heads, on_donor))
        measured = Measurement(rows, numbers)
        if self.draws(step, last):
            self._draw(measured)
        if last:
            tables = (f"{name}\n\n{patching_markdown(results)}" for name, results in first_ablation.items())
            measured.texts[f"{self.file_stem}/table_1"] = "\n\n".join(tables)
        return measured

    def custom_scalars(self) -> Charts:
        """One chart per probe and quantity, with a curve for nothing patched, each head and all heads."""
        return {
            f"{self.prefix}patching {name}: {probe.donor} into {probe.recipient}": {
                metric: curve_patterns(f"{self.prefix}patching_{name}", metric)
                for metric in (
                    f"{probe.recipient}_accuracy", f"{probe.donor}_accuracy", "logit_diff", "log_prob", *probe.metrics
                )
            }
            for name, probe in self.probes.items()
        }  # fmt: skip

    def _draw(self, measured: Measurement) -> None:
        from lit_backdoor.show.training import emergence_figure

        for name in self.probes:
            figure = emergence_figure(self.history[name], f"{self.probes[name].recipient} accuracy")
            measured.figures[f"figures/{self.prefix}patching_{name}"] = figure


def _scores(step: int, results: Sequence[PatchingResult], heads: Sequence[Head], on_donor: float) -> HeadScores:
    accuracy = {result.heads: result.recipient_accuracy for result in results}
    singles = {head: accuracy[(head,)] for head in heads}
    return HeadScores(step, accuracy[()], singles, accuracy[tuple(heads)], on_donor)


def _unpatched(results: Sequence[PatchingResult]) -> PatchingResult:
    (result,) = [result for result in results if not result.heads]
    return result


def _scalars(probe: str, results: Sequence[PatchingResult], heads: Sequence[Head]) -> dict[str, float]:
    numbers = {}
    for result in results:
        patched = "all" if result.heads == tuple(heads) and len(heads) > 1 else head_set_name(result.heads)
        for metric, value in {
            f"{result.recipient}_accuracy": result.recipient_accuracy,
            f"{result.donor}_accuracy": result.donor_accuracy,
            "logit_diff": result.logit_diff,
            "log_prob": result.log_prob,
            **result.extra,
        }.items():
            numbers[f"patching_{probe}/{metric}/{patched}"] = value
    return numbers
