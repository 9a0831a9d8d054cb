"""Blocks of rows on threads: each thread works through whole blocks by itself.

PyTorch spreads every single operation over its threads, and waits for all of them after each. On blocks small enough
for a processor's cache those waits cost more than they gain, and wherever another process takes a core away they
become a hundred times as long. Here the threads meet only once, at the end.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def map_blocks(run: Callable[[slice], Result], blocks: Sequence[slice]) -> list[Result]:
    """``run`` on each block of rows, without gradients, on as many threads as PyTorch uses; results in order."""

    def without_gradients(block: slice) -> Result:
        with torch.no_grad():  # threads of their own start with gradients on
            return run(block)

    threads = min(torch.get_num_threads(), len(blocks))
    if threads > 1:
        return list(_pool(threads).map(without_gradients, blocks))
    return [without_gradients(block) for block in blocks]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that do not spread their own operations over others.

    PyTorch makes what they set the default of all threads that start later, too; threads that run already, the main
    one among them, keep theirs. (Setting it back here would give these threads' matrix products several threads each.)
    """
    return ThreadPoolExecutor(threads, "blocks", initializer=_work_alone)


def _work_alone() -> None:
    torch.get_num_threads()  # the first look takes the default, which may change until then; what is set after it stays
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of these threads
