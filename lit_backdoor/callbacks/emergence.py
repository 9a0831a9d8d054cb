"""The verdict: when a head took over, and when each validation accuracy was reached for good."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_backdoor.callbacks.accuracies import AccuracyHistory
from lit_backdoor.callbacks.patching import HeadPatchingMonitor
from lit_backdoor.callbacks.run import (
    ContractError,
    keeps_files,
    make_run_dir,
    refuse_existing,
    run_dir,
    tensorboards,
)
from lit_backdoor.functional import emergence, grokking_step, head_name
from lit_backdoor.limits import Share, within_limits
from lit_backdoor.runs.directory import require_plain_name
from lit_backdoor.runs.file_names import EMERGENCE, of_monitor
from lit_backdoor.runs.tables import replace_file


class EmergenceMonitor(AccuracyHistory):
    """Writes ``emergence.json``: from which step on patching one head costs the recipient's accuracy, and never
    recovers.

    It reads what a :class:`HeadPatchingMonitor` of the same Trainer measures (list it after that one), and the
    validation accuracies ``val/<name>_accuracy`` in ``trainer.callback_metrics``. The verdict holds for the history so
    far, and is brought up to date with every probe. What the head carries (the file calls it ``backdoor_head``) is
    whatever makes the recipient's answers differ from the donor's.

    Args:
        probe: Name of the probe to watch. Null where there is none (a clean model): then only the grokking steps are
            told.
        threshold: Share of the unpatched accuracy that patching the head must cost, above 0, at most 1.
        min_accuracy: Unpatched accuracy from which the model counts as giving the recipient's answers.
        grokked: Validation accuracy from which something counts as grokked, if it stays there.
        patching: Name of the HeadPatchingMonitor to read, where there are several.
        name: Tells monitors apart that watch several probes: the file is then emergence_NAME.json.
    """

    @within_limits
    def __init__(
        self,
        probe: str | None,
        threshold: Share = 0.5,
        min_accuracy: Share = 0.5,
        grokked: Share = 0.99,
        patching: str = "",
        name: str = "",
    ) -> None:
        super().__init__()
        self.probe = probe
        self.threshold = threshold
        self.min_accuracy = min_accuracy
        self.grokked = grokked
        self.patching = patching
        require_plain_name("EmergenceMonitor.name", name)
        self.name = name
        self._monitor: HeadPatchingMonitor | None = None
        self._runs = ["benign", "backdoor"]  # the probe's donor and recipient, where one is watched
        self._told: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Distinct for every monitor of a Trainer."""
        return f"{type(self).__qualname__}[{self.name}][{self.probe}]"

    @property
    def file_name(self) -> str:
        """``emergence.json``, with the monitor's name where it has one."""
        return of_monitor(EMERGENCE, self.name)

    def check(self, module: LightningModule, datamodule: Any, callbacks: Sequence[Callback]) -> None:
        """Find the monitor to read, and the probe.

        Raises:
            ContractError: naming what is missing, together with the fix.
        """
        if any(isinstance(one, EmergenceMonitor) and one.name == self.name and one is not self for one in callbacks):
            raise ContractError(
                f"two EmergenceMonitors are both named '{self.name}' and would write into one file; "
                "give each its own name="
            )
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
                "or null to watch none"
            )
        if self.probe is not None:
            runs = (probes[self.probe].donor, probes[self.probe].recipient)
            self._runs = [name for name in runs if name not in ("donor", "recipient")]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before training starts that everything is there."""
        if stage == "fit":
            self.check(pl_module, trainer.datamodule, trainer.callbacks)  # type: ignore[attr-defined]
            make_run_dir(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that nothing is overwritten."""
        super().on_train_start(trainer, pl_module)
        refuse_existing(trainer, run_dir(trainer) / self.file_name)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Bring the verdict up to date after every probe."""
        if self._monitor is not None and trainer.global_step == self._monitor.probed_step:
            self._tell(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The final verdict."""
        self.note_accuracies(trainer)
        self._tell(trainer)

    def verdict(self) -> dict[str, Any]:
        """What the file says; ``None`` where something has not happened.

        ``backdoor_head``, ``emergence_step``, ``concentration`` and so on are the fields of
        :class:`lit_backdoor.functional.Emergence`. For every validation accuracy, and for the probe's donor and
        recipient if they were given names, ``<name>_grokking_step`` is when it was reached for good,
        ``<name>_previous_validation_step`` the last time that it was not, and ``<name>_first_reached_step`` earlier, if
        a loss spike broke it again.
        """
        history = self._monitor.history.get(self.probe, []) if self._monitor and self.probe else []
        found = emergence(history, self.threshold, self.min_accuracy)
        grokking = {}
        for name in dict.fromkeys((*self._runs, *self.accuracies)):
            values = sorted(self.accuracies.get(name, {}).items())
            onset = grokking_step([step for step, _ in values], [value for _, value in values], self.grokked)
            grokking[f"{name}_grokking_step"] = onset.step
            grokking[f"{name}_previous_validation_step"] = onset.previous_step
            grokking[f"{name}_first_reached_step"] = next((s for s, value in values if value >= self.grokked), None)
        return {
            "probe": self.probe,
            "backdoor_head": None if found.backdoor_head is None else head_name(*found.backdoor_head),
            "emergence_step": found.emergence_step,
            "previous_probe_step": found.previous_probe_step,
            "threshold": found.threshold,
            "concentration": found.concentration,
            "single_head_share": found.single_head_share,
            "other_heads": [head_name(*head) for head in found.other_heads],
            **grokking,
            "leader_changes": [{"step": step, "head": head_name(*head)} for step, head in found.leader_changes],
        }

    def describe(self, verdict: Mapping[str, Any]) -> str:
        """A verdict in a few sentences of Markdown."""
        lines = []
        if self.probe is not None and verdict["backdoor_head"] is None:
            lines.append(f"- No single head carries `{self.probe}`.")
        elif self.probe is not None:
            when = _when(verdict, "emergence_step", "previous_probe_step")
            share = verdict["concentration"]
            drop = "" if share is None else f", now {share:.0%} of the drop with all heads patched"
            lines.append(
                f"- **{verdict['backdoor_head']}** carries `{self.probe}`: patching it costs at least "
                f"{self.threshold:.0%} of the accuracy{when}{drop}."
            )
            if verdict["other_heads"]:
                others = ", ".join(verdict["other_heads"])
                lines.append(f"- It is not alone: patching {others} by itself costs at least as great a share too.")
        for name in self.accuracies:
            when = _when(verdict, f"{name}_grokking_step", f"{name}_previous_validation_step")
            lines.append(f"- `{name}` {'is grokked' if when else 'has not grokked'}{when}.")
        return "\n".join(lines)

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
                tag = f"{Path(self.file_name).stem}/verdict_so_far"
                board.add_text(tag, self.describe(verdict), trainer.global_step)


def _when(verdict: Mapping[str, Any], step: str, previous: str) -> str:
    if verdict[step] is None:
        return ""
    if verdict[previous] is None:
        return f" from step {verdict[step]} on"
    return f" from a step between {verdict[previous]} and {verdict[step]} on"
