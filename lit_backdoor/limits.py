"""Number types that carry their limits: signatures name them, ``--help`` shows them, one function checks them.

The command line checks them as it reads an option; :func:`within_limits` does so for calls from Python.
"""

import inspect
import math
import types
from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from jsonargparse.typing import restricted_number_type

if TYPE_CHECKING:  # to a type checker, these are plain numbers
    PositiveInt = int
    NonNegativeInt = int
    PositiveNumber = float
    NonNegativeNumber = float
    OpenUnitInterval = float
    Share = float
    DecayRate = float
else:
    PositiveInt = restricted_number_type("PositiveInt", int, (">", 0))
    NonNegativeInt = restricted_number_type("NonNegativeInt", int, (">=", 0))
    PositiveNumber = restricted_number_type("PositiveNumber", float, [(">", 0), ("<", math.inf)])
    NonNegativeNumber = restricted_number_type("NonNegativeNumber", float, [(">=", 0), ("<", math.inf)])
    OpenUnitInterval = restricted_number_type("OpenUnitInterval", float, [(">", 0), ("<", 1)])
    Share = restricted_number_type("Share", float, [(">", 0), ("<=", 1)])
    DecayRate = restricted_number_type("DecayRate", float, [(">=", 0), ("<", 1)])

WORDS = {
    "PositiveInt": "a whole number, 1 or more",
    "NonNegativeInt": "a whole number, 0 or more",
    "PositiveNumber": "a number above 0",
    "NonNegativeNumber": "a number, 0 or more",
    "OpenUnitInterval": "a number inside (0, 1)",
    "Share": "a number above 0, at most 1",
    "DecayRate": "a number inside [0, 1)",
    "NoneType": "null",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "a mapping",
}
"""What a value of a type may be, by the type's name."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def within_limits(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Check the arguments of ``function`` against the limits in its annotations, at every call.

    Limits are: the number types of this module, ``Literal``, and unions, lists and tuples of those. Whatever else is
    annotated is not checked. The function gets plain numbers. An error of a constructor names its class, as in
    ``LossSpikeMonitor.prominence``.

    Raises:
        ValueError: at the call, naming the argument, its value and what is allowed.

    >>> @within_limits
    ... def skip(steps: PositiveInt, kind: Literal["all", "some"] = "all") -> None: ...
    >>> skip(0)
    Traceback (most recent call last):
    ValueError: skip.steps: 0 is not allowed; allowed: a whole number, 1 or more
    """
    signature = inspect.signature(function)
    kinds = {name: parameter.annotation for name, parameter in signature.parameters.items()}

    @wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        owner = type(given["self"]).__name__ if "self" in given else function.__name__
        for name, value in given.items():
            if not _fits(value, kinds[name]):
                raise ValueError(f"{owner}.{name}: {value!r} is not allowed; allowed: {in_words(kinds[name])}")
            given[name] = plain(value)
        return function(*bound.args, **bound.kwargs)

    return checked


def plain(value: Any) -> Any:
    """Turn numbers of the types above, which the command line hands over, into those of Python.

    What is saved in files must not need this module to be read again.
    """
    if hasattr(value, "_restrictions"):
        return value._type(value)
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def in_words(kind: Any) -> str:
    """Say in words what values a type allows.

    >>> in_words(Literal["LN"] | None)
    'LN, null'
    >>> in_words(tuple[DecayRate, DecayRate])
    'a list of 2, each a number inside [0, 1)'
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return ", ".join(dict.fromkeys(in_words(kind) for kind in inner))
    if origin is tuple:
        return f"a list of {len(inner)}, each {in_words(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, such as [1, 2], each {in_words(inner[0])}"
    name = getattr(kind, "__name__", str(kind))
    return WORDS.get(name, name)


def _fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` keeps the limits of ``kind``; a type without limits takes everything."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is type(None):
        return value is None
    if hasattr(kind, "_restrictions"):
        try:
            return isinstance(value, Real) and kind(value) == value
        except (ValueError, OverflowError):
            return False
    if origin is Literal:
        return value in inner
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(value, Sequence):
        return all(_fits(item, inner[0]) for item in value)
    return True
