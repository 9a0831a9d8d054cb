"""What a monitor measures on, and what it has measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lit_backdoor.callbacks.run import ContractError
from lit_backdoor.functional import HookedModel, Probe
from lit_backdoor.runs.schema import Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Probes = Mapping[str, Probe]
"""What to measure on, by name; the names appear in tables, file names and TensorBoard."""


@dataclass
class Measurement:
    """What a monitor has measured at one step.

    Attributes:
        rows: of its table.
        numbers: scalars for the loggers, by tag, without the monitor's name.
        figures: for the loggers, by tag.
        texts: Markdown for the loggers, by tag.
    """

    rows: list[dict[str, Value]]
    numbers: dict[str, float] = field(default_factory=dict)
    figures: "dict[str, Figure]" = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def probes_from(given: Probes | Callable[[], Probes] | None, datamodule: Any, asker: str) -> Probes:
    """The probes that a monitor was given, else the datamodule's.

    Raises:
        ContractError: if there are none, or something else was given; the message names the ``asker``.
    """
    source = given
    if source is None:
        if not hasattr(datamodule, "probes"):
            raise ContractError(
                f"{asker} has no probes: pass probes={{'name': Probe(...)}}, or a function that returns them, or give "
                "the datamodule a method probes() that does"
            )
        source = datamodule.probes
    return checked_probes(f"{asker}.probes", source)


def checked_probes(option: str, source: Any) -> Probes:
    """The probes that somebody gives, as a mapping or as a function that returns it.

    Args:
        option: what they are given for, for errors.

    Raises:
        ContractError: if they are none.
    """
    probes = source() if callable(source) else source
    if not isinstance(probes, Mapping) or not all(isinstance(probe, Probe) for probe in probes.values()):
        raise ContractError(f"{option}: {probes!r} is no mapping of names to Probes")
    if not probes:
        raise ContractError(f"{option}: the mapping is empty; give one Probe or more")
    if unnamed := [name for name in probes if not (isinstance(name, str) and name)]:
        raise ContractError(f"{option}: {unnamed[0]!r} is no name; give each Probe a text")
    return probes


def raise_if_unaware_of_precision(model: HookedModel, error: RuntimeError, asker: str) -> None:
    """Explain an ``error`` of a model whose weights Lightning has converted without telling it.

    Raises:
        ContractError: its weights are of another type than it believes; the message says the fix.
    """
    believed, weights = getattr(model.cfg, "dtype", None), model.W_U.dtype
    if believed not in (None, weights):
        raise ContractError(
            f"{asker}: the weights of {type(model).__name__} are {weights}, but its cfg.dtype is {believed}, to which "
            f"it converts what it computes ({error}); build it with dtype={weights}"
        ) from error
