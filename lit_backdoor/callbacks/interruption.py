"""Signals that come while a monitor measures: the measurement stops, and whoever handles the signal goes on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from lit_backdoor.functional.stopping import stoppable


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM stop what is measured inside, and hand them on afterwards.

    This is for handlers that only take a note, to act when the optimizer step is over: Lightning's, a cluster's, or
    :class:`lit_backdoor.callbacks.RunCheckpoint`'s. Python's own, and signals that nobody handles, act at once anyway.
    """
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        present = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handlers = {
            number: handler
            for number, handler in present.items()
            if callable(handler) and handler is not signal.default_int_handler
        }
    received: list[int] = []

    with ExitStack() as stack:
        stack.callback(_hand_on, received)  # after all else
        stop = stack.enter_context(stoppable())

        def on_signal(number: int, frame: FrameType | None) -> None:
            received.append(number)
            stop()

        for number, handler in handlers.items():
            stack.callback(signal.signal, number, handler)
            signal.signal(number, on_signal)
        yield


def _hand_on(received: list[int]) -> None:
    for number in received:
        signal.raise_signal(number)
