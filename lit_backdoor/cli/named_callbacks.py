"""The callbacks of a run that have a name on the command line, as in ``--monitors.patching.every_n_steps 50``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar

from lit_backdoor.callbacks import (
    AttentionMonitor,
    EmergenceMonitor,
    HeadAttributionMonitor,
    HeadClamp,
    HeadPatchingMonitor,
    LossSpikeMonitor,
    NeuronMonitor,
    PathPatchingMonitor,
    ProgressMeasureMonitor,
    RunCheckpoint,
    SpecificityMonitor,
    StepProgressBar,
    WeightCheckpoint,
)
from lit_backdoor.cli.option_checks import refuse_nulls

NAMED_CALLBACKS: Mapping[str, type[Callback]] = {
    "progress_bar": StepProgressBar,
    "monitors.attribution": HeadAttributionMonitor,
    "monitors.patching": HeadPatchingMonitor,
    "monitors.paths": PathPatchingMonitor,
    "monitors.attention": AttentionMonitor,
    "monitors.specificity": SpecificityMonitor,
    "monitors.neurons": NeuronMonitor,
    "monitors.progress": ProgressMeasureMonitor,
    "monitors.emergence": EmergenceMonitor,
    "monitors.spikes": LossSpikeMonitor,
    "clamp": HeadClamp,
    "weights": WeightCheckpoint,
    "checkpoint": RunCheckpoint,
}
"""Callback classes by name, in the order in which the Trainer gets them. Their values are in ``defaults.yaml``."""


def add_named_callbacks(parser: ArgumentParser) -> None:
    """Give every named callback an option group; ``null`` in place of the group leaves the callback out."""
    for name, kind in NAMED_CALLBACKS.items():
        parser.add_class_arguments(kind, name, fail_untyped=False, instantiate=False, sub_configs=True)


def refuse_nulls_of_named_callbacks(options: Namespace) -> None:
    """Make sure that no option of a named callback is null that may not be.

    Raises:
        ValueError: naming the option.
    """
    for name, kind in NAMED_CALLBACKS.items():
        refuse_nulls(name, options.get(name) or {}, kind.__init__)


def all_callbacks(options: Namespace, listed: Sequence[Callback], notes: list[str]) -> list[Callback]:
    """The named callbacks, then those that ``trainer.callbacks`` lists.

    A listed callback of the same class and name takes the place of a named one. So configurations written before the
    names existed, which list all callbacks, run as they did.

    Args:
        options: Of the subcommand, with the options of every named callback.
        listed: What ``trainer.callbacks`` made.
        notes: Gets a line for the user if a listed callback takes the place of a named one.

    Raises:
        ValueError: if two callbacks of one class have the same name, or an option of one is wrong.
    """
    _require_different_names(listed)
    left = list(listed)
    callbacks: list[Callback] = []
    replaced: list[str] = []
    for name, kind in NAMED_CALLBACKS.items():
        own_options = options.get(name)
        if own_options is None:
            continue
        substitutes = [callback for callback in left if _takes_the_place(callback, kind, own_options)]
        callbacks += substitutes or [kind(**own_options)]
        left = [callback for callback in left if callback not in substitutes]
        replaced += [f"{name} ({type(callback).__name__})" for callback in substitutes]
    complete = any(isinstance(callback, RunCheckpoint) for callback in listed)  # as all lists were before the names
    if replaced and not complete:
        notes.append(
            f"trainer.callbacks takes the place of {', '.join(replaced)}; to have both, give the listed one a name "
            "(init_args: {name: ...})"
        )
    return callbacks + left


def _takes_the_place(callback: Callback, kind: type[Callback], options: Mapping[str, Any]) -> bool:
    if issubclass(kind, ProgressBar):
        return isinstance(callback, ProgressBar)  # a Trainer takes only one
    return type(callback) is kind and getattr(callback, "name", "") == options.get("name", "")


def _require_different_names(callbacks: Iterable[Callback]) -> None:
    seen = set()
    for callback in callbacks:
        identity = (type(callback), getattr(callback, "name", ""))
        if identity in seen and type(callback) in NAMED_CALLBACKS.values():
            kind = type(callback).__name__
            raise ValueError(
                f"trainer.callbacks: two {kind} have the name '{identity[1]}'; give it a name: "
                f"{{class_path: {kind}, init_args: {{name: ...}}}}"
            )
        seen.add(identity)
