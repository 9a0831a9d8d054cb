"""How many cores there are, who works on how many threads, and that nobody's setting is changed."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lit_backdoor.functional import row_threads
from lit_backdoor.functional.row_threads import at_most_omp, map_blocks, one_torch_thread, set_row_threads, usable_cores

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    set_row_threads(None)


def files(root: Path, contents: dict[str, str]) -> Path:
    """A root directory with these files below sys/fs/cgroup, and proc/self/cgroup under ""."""
    for name, text in contents.items():
        path = root / "sys/fs/cgroup" / name if name else root / "proc/self/cgroup"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.skipif(CORES < 2, reason="one core is the least there is")
@pytest.mark.parametrize(
    ("contents", "cores"),
    [
        ({}, CORES),
        ({"": "0::/\n", "cpu.max": "max 100000\n"}, CORES),
        ({"": "0::/\n", "cpu.max": "100000 100000\n"}, 1),
        ({"": "0::/\n", "cpu.max": "10000 100000\n"}, 1),  # a tenth of a core is one thread
        ({"": "0::/\n", "cpu.max": "150000 100000\n"}, 2),  # rounded up
        ({"": "0::/\n", "cpu.max": f"{CORES}00000 50000\n"}, CORES),  # more than there are
        ({"": "0::/user/job\n", "user/cpu.max": "50000 50000\n", "user/job/cpu.max": "max 100000\n"}, 1),
        ({"": "0::/on/the/host\n", "cpu.max": "100000 100000\n"}, 1),  # in a container the path is not there
        ({"": "3:memory:/\n2:cpu,cpuacct:/job\n", "cpu/job/cpu.cfs_quota_us": "100000\n",
          "cpu/job/cpu.cfs_period_us": "100000\n"}, 1),
        ({"": "1:cpu:/\n", "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CORES),
        ({"": "1:cpuset:/\n", "cpu/cpu.cfs_quota_us": "1\n", "cpu/cpu.cfs_period_us": "1\n"}, CORES),
    ],
)  # fmt: skip
def test_quotas_of_control_groups_count(tmp_path: Path, contents: dict[str, str], cores: int) -> None:
    assert usable_cores(files(tmp_path, contents)) == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to a core")
def test_cores_that_the_process_is_kept_off_do_not_count() -> None:
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(
    ("text", "threads"), [(None, 8), ("", 8), ("2", 2), ("16", 8), (" 3,2 ", 3), ("0", 8), ("many", 8), ("-1", 8)]
)
def test_the_environment_limits_the_threads(monkeypatch: pytest.MonkeyPatch, text: str | None, threads: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    if text is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert at_most_omp(8) == threads
    set_row_threads(None)
    assert row_threads.row_threads() == min(usable_cores(), threads)
    set_row_threads(5)  # said outright, it is more than a default
    assert row_threads.row_threads() == 5


@pytest.mark.parametrize("threads", [0, -2])
def test_too_few_threads_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=rf"threads: {threads} is too few; allowed: 1 or more"):
        set_row_threads(threads)


def test_inside_pytorch_has_one_thread_and_afterwards_what_it_had() -> None:
    torch.set_num_threads(3)
    with pytest.raises(KeyError), one_torch_thread():
        with one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_thread_works_alone_and_results_come_in_order(threads: int) -> None:
    torch.set_num_threads(3)
    set_row_threads(threads)
    at_once = threading.Barrier(threads)

    def run(block: int) -> tuple[int, int, str, bool]:
        at_once.wait(60)  # all of them, or nobody
        return block, torch.get_num_threads(), threading.current_thread().name, torch.is_grad_enabled()

    for _ in range(2):  # the second time the threads are there already
        results = map_blocks(run, range(2 * threads))
        assert [block for block, *_ in results] == list(range(2 * threads))
        assert {alone for _, alone, *_ in results} == {1}
        assert len({name for _, _, name, _ in results}) == threads
        assert not any(grad for *_, grad in results)
        assert torch.get_num_threads() == 3
    of_a_new_thread: list[int] = []
    new = threading.Thread(target=lambda: of_a_new_thread.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert of_a_new_thread == [3]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_error_in_a_block_reaches_the_caller(threads: int) -> None:
    torch.set_num_threads(2)
    set_row_threads(threads)
    done: list[int] = []
    for block in range(3):
        with pytest.raises(IndexError):
            map_blocks(lambda i, bad=block: done.append(i) if i != bad else done[-99], range(3))
    assert threads > 1 or done == [0, 0, 1]  # nothing more is begun
    assert torch.get_num_threads() == 2


def test_a_helper_that_gets_no_core_is_not_waited_for() -> None:
    set_row_threads(2)
    go = threading.Event()
    pool = row_threads._pool(1)
    busy = pool.submit(go.wait, 60)  # the only helper has something else to do
    try:
        assert map_blocks(lambda block: threading.current_thread().name, range(5)) == ["MainThread"] * 5
        assert not go.is_set() and not busy.done()
    finally:
        go.set()


def test_blocks_within_blocks_are_computed_too() -> None:
    set_row_threads(2)
    inner = map_blocks(lambda block: sum(map_blocks(lambda i: i * block, range(4))), range(6))
    assert inner == [6 * block for block in range(6)]


def test_a_forked_child_makes_threads_of_its_own() -> None:
    code = """
import os, signal, warnings
warnings.simplefilter("ignore")
from lit_backdoor.functional.row_threads import map_blocks, set_row_threads
set_row_threads(2)
map_blocks(int, [0, 1])
child = os.fork()
if child == 0:
    signal.alarm(20)
    map_blocks(int, [0, 1])
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
