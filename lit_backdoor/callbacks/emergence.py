"""The verdict: when a head took over, and when each rule grokked."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_backdoor.callbacks.accuracies import AccuracyHistory
from lit_backdoor.callbacks.patching import HeadPatchingMonitor
from lit_backdoor.callbacks.run import ContractError, keeps_files, make_run_dir, run_dir, tensorboards
from lit_backdoor.functional import Emergence, Onset, emergence, grokking_step, head_name
from lit_backdoor.records import replace_file


class EmergenceMonitor(AccuracyHistory):
    """Writes ``emergence.json``: from which step on patching one head costs the backdoor, and never recovers.

    It reads what a :class:`HeadPatchingMonitor` of the same Trainer measures, and the validation accuracies
    ``val/<rule>_accuracy`` in ``trainer.callback_metrics``. The verdict holds for the history so far, and is brought
    up to date with every probe.

    Args:
        probe: Name of the probe to watch; its recipient is the run with the backdoor. Null where there is none (a
            clean model): then only the grokking steps are told.
        threshold: Share of the unpatched accuracy that patching the head must cost, above 0, at most 1.
        min_accuracy: Unpatched accuracy from which the model counts as having the backdoor.
        grokked: Validation accuracy from which a rule counts as grokked, if it stays there.
        patching: Name of the HeadPatchingMonitor to read, where there are several.
        name: Tells monitors apart that watch several probes: the file is then emergence_NAME.json.
    """

    def __init__(
        self,
        probe: str | None = "backdoor",
        threshold: float = 0.5,
        min_accuracy: float = 0.5,
        grokked: float = 0.99,
        patching: str = "",
        name: str = "",
    ) -> None:
        super().__init__()
        for share, value in (("threshold", threshold), ("min_accuracy", min_accuracy), ("grokked", grokked)):
            if not 0 < value <= 1:
                raise ValueError(f"EmergenceMonitor.{share}: {value} is no share; above 0, at most 1")
        self.probe = probe
        self.threshold = threshold
        self.min_accuracy = min_accuracy
        self.grokked = grokked
        self.patching = patching
        self.name = name
        self._monitor: HeadPatchingMonitor | None = None
        self._told: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Distinct for every monitor of a Trainer."""
        return f"{type(self).__qualname__}[{self.name}]"

    @property
    def file_name(self) -> str:
        """``emergence.json``, with the monitor's name where it has one."""
        return f"emergence_{self.name}.json" if self.name else "emergence.json"

    def check(self, module: LightningModule, datamodule: Any, callbacks: Sequence[Callback]) -> None:
        """Find the monitor to read, and the probe.

        Raises:
            ContractError: naming what is missing, together with the fix.
        """
        monitors = [one for one in callbacks if isinstance(one, HeadPatchingMonitor)]
        named = [one for one in monitors if one.name == self.patching]
        if not named:
            raise ContractError(
                f"EmergenceMonitor.patching: no HeadPatchingMonitor is named '{self.patching}'; "
                f"add one to the Trainer's callbacks, before this one (there are: {[one.name for one in monitors]})"
            )
        self._monitor = named[0]
        probes = self._monitor.probes_of(datamodule)
        if self.probe is not None and self.probe not in probes:
            raise ContractError(
                f"EmergenceMonitor.probe: '{self.probe}' is not among the probes {sorted(probes)}; name one, "
                "or null if the model has no backdoor to watch"
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before training starts that everything is there."""
        if stage == "fit":
            self.check(pl_module, trainer.datamodule, trainer.callbacks)  # type: ignore[attr-defined]
            make_run_dir(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Bring the verdict up to date after every probe."""
        if self._monitor is not None and trainer.global_step == self._monitor.probed_step:
            self._tell(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The final verdict."""
        self.note_accuracies(trainer)
        self._tell(trainer)

    def verdict(self) -> dict[str, Any]:
        """What emergence.json says, see DESIGN; ``None`` where something has not happened."""
        history = self._monitor.history.get(self.probe, []) if self._monitor and self.probe else []
        found = emergence(history, self.threshold, self.min_accuracy)
        onsets = {rule: self._grokking(values) for rule, values in self.accuracies.items()}
        first = {
            rule: min((step for step, value in values.items() if value >= self.grokked), default=None)
            for rule, values in self.accuracies.items()
        }
        return _as_json(found, onsets, first, self.probe)

    def _grokking(self, values: Mapping[int, float]) -> Onset:
        steps = sorted(values)
        return grokking_step(steps, [values[step] for step in steps], self.grokked)

    def _tell(self, trainer: Trainer) -> None:
        if not keeps_files(trainer):
            return
        verdict = self.verdict()
        replace_file(run_dir(trainer) / self.file_name, json.dumps(verdict, indent=2) + "\n")
        moments = {
            key: value
            for key, value in verdict.items()
            if key in ("backdoor_head", "other_heads") or key.endswith("_step")
        }
        if moments != self._told:
            self._told = moments
            for board in tensorboards(trainer):
                board.add_text(
                    f"emergence{'_' if self.name else ''}{self.name}/verdict_so_far",
                    describe(verdict),
                    trainer.global_step,
                )


def _as_json(
    found: Emergence, onsets: Mapping[str, Onset], first: Mapping[str, int | None], probe: str | None
) -> dict[str, Any]:
    grokking: dict[str, Any] = {}
    for rule in dict.fromkeys(("benign", "backdoor", *onsets)):
        onset = onsets.get(rule, Onset(None, None))
        grokking[f"{rule}_grokking_step"] = onset.step
        grokking[f"{rule}_previous_validation_step"] = onset.previous_step
        grokking[f"{rule}_first_reached_step"] = first.get(rule)  # earlier, if a loss spike broke it again
    benign = grokking["benign_grokking_step"]
    lag = None if None in (found.emergence_step, benign) else found.emergence_step - benign
    return {
        "probe": probe,
        "backdoor_head": None if found.backdoor_head is None else head_name(*found.backdoor_head),
        "emergence_step": found.emergence_step,
        "previous_probe_step": found.previous_probe_step,
        "threshold": found.threshold,
        "concentration": found.concentration,
        "single_head_share": found.single_head_share,
        "other_heads": [head_name(*head) for head in found.other_heads],
        **grokking,
        "emergence_after_benign_grokking": lag,
        "leader_changes": [{"step": step, "head": head_name(*head)} for step, head in found.leader_changes],
    }


def describe(verdict: Mapping[str, Any]) -> str:
    """The verdict in a few sentences of Markdown."""
    lines = []
    if verdict["probe"] is not None:
        if verdict["backdoor_head"] is None:
            lines.append(f"- No single head carries `{verdict['probe']}`.")
        else:
            lines.append(
                f"- **{verdict['backdoor_head']}** carries `{verdict['probe']}`: patching it costs at least "
                f"{verdict['threshold']:.0%} of the accuracy{_when(verdict, 'emergence_step', 'previous_probe_step')}"
                f", now {verdict['concentration']:.0%} of the drop with all heads patched."
            )
            if verdict["other_heads"]:
                others = ", ".join(verdict["other_heads"])
                lines.append(f"- It is not alone: patching {others} by itself costs at least as great a share too.")
    for key in verdict:
        if key.endswith("_grokking_step"):
            rule = key.removesuffix("_grokking_step")
            when = _when(verdict, key, f"{rule}_previous_validation_step")
            lines.append(f"- The {rule} rule {'is grokked' if when else 'has not grokked'}{when}.")
    return "\n".join(lines)


def _when(verdict: Mapping[str, Any], step: str, previous: str) -> str:
    if verdict[step] is None:
        return ""
    if verdict[previous] is None:
        return f" from step {verdict[step]} on"
    return f" from a step between {verdict[previous]} and {verdict[step]} on"
