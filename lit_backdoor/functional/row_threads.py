"""Rows on threads: blocks of rows are spread over a pool of threads, and each operation runs on one thread.

PyTorch spreads every single operation over its threads, and waits for all of them after each. On small operations the
waits cost more than they gain, and wherever another process takes a core away they become a hundred times as long.
Here the threads meet only once, when all blocks are done.

The results do not depend on the number of threads: the blocks are the same for any number, each is computed by one
thread from beginning to end, and they come back in order.
"""

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

import torch

from lit_backdoor.functional.stopping import check_stop

Block = TypeVar("Block")
Result = TypeVar("Result")

BLOCK_ROWS = 960
"""At most so many rows of a training step are computed at a time: their activations stay in a core's cache, and there
are blocks enough for every thread."""

_threads = 0
"""The size of the pool; 0 until somebody asks."""


def row_threads() -> int:
    """Return how many threads work on blocks of rows: what `set_row_threads` said, else all that may be used."""
    if not _threads:
        set_row_threads(None)
    return _threads


def set_row_threads(threads: int | None) -> None:
    """Spread blocks of rows over so many threads from now on.

    Args:
        threads: 1 or more; None takes every core that this process may use (`usable_cores`), but no more than the
            environment variable OMP_NUM_THREADS allows.

    Raises:
        ValueError: `threads` is below 1.
    """
    global _threads
    if threads is not None and threads < 1:
        raise ValueError(f"threads: {threads} is too few; allowed: 1 or more, or null for all that may be used")
    _threads = threads or at_most_omp(usable_cores())


def usable_cores(root: Path = Path("/")) -> int:
    """Count the CPU cores that this process may use: its affinity, and the quota of its control groups, rounded up.

    Args:
        root: where /proc and /sys are.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([affinity, *(math.ceil(quota) for quota in _quotas(root))]), 1)


def at_most_omp(threads: int) -> int:
    """`threads`, or OMP_NUM_THREADS if that is set and smaller. Of a list such as "4,2" the first number counts."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(threads, int(text)) if text.isdecimal() and int(text) else threads


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run PyTorch's own operations on one thread inside; the setting is afterwards what it was before.

    It holds for the thread that enters it, and is as cheap as a function call.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def row_blocks(n: int) -> list[slice]:
    """Cut `n` rows into blocks of about the same size, of `BLOCK_ROWS` rows at most."""
    size = math.ceil(n / math.ceil(n / BLOCK_ROWS))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def map_blocks(run: Callable[[Block], Result], blocks: Sequence[Block]) -> list[Result]:
    """Call `run` on each block of rows, without gradients, on `row_threads` threads; the results in order.

    The calling thread is one of them. It waits only for blocks that another has begun: on a busy machine, threads that
    get no core in time are not waited for.
    """
    results: dict[int, Result] = {}
    left = deque(range(len(blocks)))

    def work() -> None:
        with one_torch_thread(), torch.no_grad():  # threads start with gradients on
            while left:
                check_stop()
                try:
                    i = left.popleft()
                except IndexError:  # another took the last one
                    return
                results[i] = run(blocks[i])

    others = min(row_threads(), len(blocks)) - 1
    with one_torch_thread():  # what a thread sets is the default of later ones, so this one sets it last
        helpers = [_pool(others).submit(work) for _ in range(others)]
        try:
            work()
        finally:
            left.clear()
            begun = [helper for helper in helpers if not helper.cancel()]
            wait(begun)
        for helper in begun:
            helper.result()
    return [results[i] for i in range(len(blocks))]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "rows")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of these threads


def _quotas(root: Path) -> Iterator[float]:
    """The cores' worth of time that each control group around this process may use, as far as they are limited.

    Inside a container the groups' paths may be those of the host, and only the root of the mount is there.
    """
    for group in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = group.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")  # version 1 has a tree for each controller
        for directory in (path, *map(str, PurePosixPath(path).parents)):
            here = mount / directory.strip("/")
            limit = _read(here / "cpu.max") or _read(here / "cpu.cfs_quota_us") + _read(here / "cpu.cfs_period_us")
            numbers = [int(number) for number in limit.split() if number.isdecimal()]  # no limit is "max", or -1
            if len(numbers) == 2 and numbers[1]:
                yield numbers[0] / numbers[1]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
