"""The verdict: where a behaviour sits among the heads and since when, and what the run has come to."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_backdoor.callbacks.attention import AttentionMonitor
from lit_backdoor.callbacks.history import Metrics, accuracies, forget, older_metrics
from lit_backdoor.callbacks.monitor import MonitorCallback
from lit_backdoor.callbacks.patching import HeadPatchingMonitor
from lit_backdoor.callbacks.run import ContractError, RunOutlet
from lit_backdoor.functional import capture_record, lowest_training_accuracy, stuck_since
from lit_backdoor.functional.moments import came_before, recorded_moment
from lit_backdoor.functional.verdict import verdict_record
from lit_backdoor.limits import Share, within_limits
from lit_backdoor.runs.directory import require_plain_name
from lit_backdoor.runs.file_names import EMERGENCE, of_monitor


class EmergenceMonitor(MonitorCallback):
    """Which head costs most, since when it is the only costly one, and the run's state, into ``emergence.json``.

    A head is costly if patching it takes enough of the accuracy away. The state says whether the run has fitted its
    training data and generalised.

    It reads what a :class:`HeadPatchingMonitor` of the same Trainer measures, and from
    ``trainer.callback_metrics`` the accuracies ``train/<rule>_accuracy`` and ``val/<rule>_accuracy`` and the losses
    ``val/<rule>_loss`` or ``val/loss``. Where an :class:`AttentionMonitor` of the same name as the patching monitor
    measures the probe too, and both without a clamp, the verdict also says when attention was captured, see
    :func:`lit_backdoor.functional.capture_record`. The verdict holds for the history so far, and is brought up to
    date with every probe. It is about whatever makes the recipient's answers differ from the donor's: where the
    patching monitor measures the reversed probe too, answers that the donor's inputs give as well do not count (see
    :func:`lit_backdoor.functional.shows_behaviour`). When a run looks stuck (see
    :func:`lit_backdoor.functional.stuck_since`), the monitor warns once.

    Args:
        probe: Name of the probe to watch. Null where there is none (a clean model): then only the state of the run is
            told.
        threshold: Share of the behaviour that patching a head must cost for it to be costly, above 0, at most 1.
        min_accuracy: Unpatched accuracy from which the model counts as giving the recipient's answers.
        patching: Name of the HeadPatchingMonitor to read, where there are several.
        name: Tells monitors apart that watch several probes: the file is then emergence_NAME.json.
    """

    @within_limits
    def __init__(
        self,
        probe: str | None,
        threshold: Share = 0.5,
        min_accuracy: Share = 0.5,
        patching: str = "",
        name: str = "",
    ) -> None:
        self.probe = probe
        self.threshold = threshold
        self.min_accuracy = min_accuracy
        self.patching = patching
        require_plain_name("EmergenceMonitor.name", name)
        self.name = name
        self._monitor: HeadPatchingMonitor | None = None
        self._attention: AttentionMonitor | None = None
        self._floor = 0.0
        self._warned = False
        self._described: dict[str, Any] | None = None
        self._older_metrics: Metrics = {}

    @property
    def metrics(self) -> Metrics:
        """What has been measured about the rules, by name and step."""
        return self.run.metrics if self.run is not None else {}

    @property
    def accuracies(self) -> Metrics:
        """Every validation accuracy, 0 to 1, by its short name and step."""
        return accuracies(self.metrics)

    def state_dict(self) -> dict[str, Any]:
        """Whether the run was called stuck."""
        return {"warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back; older checkpoints hold the metrics here."""
        self._older_metrics = older_metrics(state_dict)
        self._warned = state_dict.get("warned", False)

    @property
    def state_key(self) -> str:
        """Distinct for every monitor of a Trainer."""
        return f"{type(self).__qualname__}[{self.name}][{self.probe}]"

    @property
    def file_name(self) -> str:
        """``emergence.json``, with the monitor's name where it has one."""
        return of_monitor(EMERGENCE, self.name)

    def check_model(self, model: Any, datamodule: Any, monitors: Sequence[Any]) -> None:
        """Find the monitor to read, and the probe.

        Raises:
            ContractError: naming what is missing, together with the fix.
        """
        if any(
            isinstance(monitor, EmergenceMonitor) and monitor.name == self.name and monitor is not self
            for monitor in monitors
        ):
            raise ContractError(
                f"two EmergenceMonitors are both named '{self.name}' and would write into one file; "
                "give each its own name="
            )
        patching = [monitor for monitor in monitors if isinstance(monitor, HeadPatchingMonitor)]
        named = [monitor for monitor in patching if monitor.name == self.patching]
        if not named:
            raise ContractError(
                f"EmergenceMonitor.patching: no HeadPatchingMonitor is named '{self.patching}'; "
                f"add one to the Trainer's callbacks (there are: {[monitor.name for monitor in patching]})"
            )
        self._monitor = named[0]
        attention = [
            monitor for monitor in monitors if isinstance(monitor, AttentionMonitor) and monitor.name == self.patching
        ]
        self._attention = attention[0] if attention and not self._monitor.clamped else None  # which is never clamped
        probes = self._monitor.probes_of(datamodule)
        if self.probe is not None and self.probe not in probes:
            raise ContractError(
                f"EmergenceMonitor.probe: '{self.probe}' is not among the probes {sorted(probes)}; name one, "
                "or null to watch none"
            )
        if self.probe is not None:
            self._floor = 1 - float(probes[self.probe].answers_differ.double().mean())

    def begin(self, run: RunOutlet, step: int) -> None:
        """Make sure that nothing is overwritten, and ask to be told of every probe."""
        super().begin(run, step)
        run.refuse_existing(self.file_name)
        forget(self._older_metrics, step)
        for name, values in self._older_metrics.items():
            run.metrics.setdefault(name, values)
        self._described = None
        assert self._monitor is not None  # from `check_model` on
        self._monitor.tell(self.state_key, self._update)
        theirs = self._monitor.run  # each callback of a Trainer has an outlet, but all have one history
        if theirs is not None and theirs.metrics is run.metrics and self._monitor.probed_step == step:  # it was first
            self._update(step)

    def finish(self, step: int) -> None:
        """Write the final verdict, and say it."""
        verdict = self._write(step)
        said = self.describe(verdict).replace("`", "").replace("**", "")
        rank_zero_info(f"{self.file_name} at step {step}:\n{said}")

    def _update(self, step: int) -> None:
        self._warn_if_stuck()
        self._write(step)

    def verdict(self) -> dict[str, Any]:
        """What the file says; ``None`` where something has not happened.

        See :func:`lit_backdoor.functional.verdict.verdict_record` and :func:`lit_backdoor.functional.capture_record`.
        """
        history, all_sets = [], None
        if self._monitor is not None and self.probe is not None:
            history = self._monitor.history.get(self.probe, [])
            all_sets = self._monitor.all_sets.get(self.probe)
        verdict = verdict_record(
            self.probe, history, all_sets, self.metrics, self._floor, self.threshold, self.min_accuracy
        )
        shifts = [] if self._attention is None or self.probe is None else self._attention.history.get(self.probe, [])
        return verdict | capture_record(shifts, verdict["first_cost_step"])

    def describe(self, verdict: Mapping[str, Any]) -> str:
        """A verdict in a few sentences of Markdown."""
        lines = []
        if self.probe is not None:
            lines.append(f"- {_WORDS[verdict['word']](verdict)}")
            if verdict["effective_heads"] is not None:
                lines.append(f"- It is spread among {verdict['effective_heads']:.1f} heads, by their Shapley shares.")
        if verdict["capture_lag"] is not None:
            lines.append(f"- {_capture(verdict)}")
        lines.append(f"- The run: {verdict['state'] or 'no training accuracy is recorded'}.")
        for key, what in (("fitted_step", "Fitted"), ("generalised_step", "Generalised")):
            if verdict[key] is not None:
                lines.append(f"- {what} first at step {verdict[key]}.")
        return "\n".join(lines)

    def _warn_if_stuck(self) -> None:
        lowest = lowest_training_accuracy(self.metrics)
        since = None if self._warned else stuck_since(list(lowest), list(lowest.values()))
        if since is not None:
            self._warned = True
            rank_zero_warn(
                f"This run looks stuck: its training accuracy has made no progress since step {since} "
                f"({lowest[since]:.0%} for the worst rule). Another seed or another split of the data is likely to "
                "help, more steps are not."
            )

    def _write(self, step: int) -> dict[str, Any]:
        assert self.run is not None  # from `begin` on
        verdict = self.verdict()
        self.run.write(self.file_name, json.dumps(verdict, indent=2) + "\n")
        moments = {key: value for key, value in verdict.items() if key in _NEWS or key.endswith("_step")}
        moments.pop("shapley_step")
        if moments != self._described:
            self._described = moments
            self.run.show_text(f"{Path(self.file_name).stem}/verdict_so_far", self.describe(verdict), step)
        return verdict


_NEWS = ("head", "word", "other_heads", "state")
"""What makes a new text in TensorBoard when it changes, beside every moment."""


def _capture(verdict: Mapping[str, Any]) -> str:
    captured, cost = (recorded_moment(verdict, name) for name in ("capture", "first_cost"))
    order = {True: "before a head cost", False: "after a head cost", None: "before or after a head cost: not known"}
    said = order[came_before(captured, cost)]
    return f"Attention of {verdict['capture_head']} was captured by step {captured.step}, {said}."


def _alone(verdict: Mapping[str, Any]) -> str:
    step, previous = (verdict[f"stable_exclusive_{key}"] for key in ("step", "previous_step"))
    since = ", but not yet for long" if step is None else f" from step {step} on"
    if previous is not None:
        since = f" from a step between {previous} and {step} on"
    return f"`{verdict['probe']}`: **{verdict['head']}** alone costs at least {verdict['threshold']:.0%}{since}."


def _one_of_several(verdict: Mapping[str, Any]) -> str:
    return (
        f"`{verdict['probe']}`: **{verdict['head']}** is one of several: each alone, it and "
        f"{', '.join(verdict['other_heads'])} cost at least {verdict['threshold']:.0%}."
    )


_WORDS: Mapping[str | None, Callable[[Mapping[str, Any]], str]] = {
    "alone": _alone,
    "one of several": _one_of_several,
    "spread": lambda verdict: f"`{verdict['probe']}` is spread: only several heads together cost that much.",
    "past the heads": lambda verdict: f"`{verdict['probe']}` goes past the heads: all together cost less than that.",
    None: lambda verdict: f"The model does not show `{verdict['probe']}`, or shows it on the donor's inputs too.",
}
"""A sentence for every word."""
