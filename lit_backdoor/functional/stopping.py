"""Measurements that can be stopped: before each block of rows, and before each module of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

_asked = False


class Stopped(Exception):
    """A measurement has been asked to stop, and leaves the model as it was."""


def check_stop(*_: Any) -> None:
    """Go on, unless the measurement has been asked to stop.

    Raises:
        Stopped: it has.
    """
    if _asked:
        raise Stopped


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Give a function that stops what is measured inside. A signal handler may call it."""
    global _asked

    def stop() -> None:
        global _asked
        _asked = True

    hook = register_module_forward_pre_hook(check_stop)
    try:
        yield stop
    finally:
        hook.remove()
        _asked = False
