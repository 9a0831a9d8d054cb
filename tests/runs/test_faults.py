"""Full disks, directories that vanish, clocks that jump, damaged files, two runs in one place."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_backdoor.logger import RunLogger
from lit_backdoor.runs.checkpoints import read_checkpoint
from lit_backdoor.runs.directory import locked
from lit_backdoor.runs.tables import read_table
from tests.helpers import QUIET
from tests.helpers.configs import callback_options, load_config, save_config, with_callback
from tests.helpers.runs import Cli, assert_same_results, contents, scalars

RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
STEP: dict[int, Callable[[], object]] = {}


class Fault(Callback):
    """Does what STEP says for a step, after everything else that happens at it."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        if trainer.global_step in STEP:
            STEP.pop(trainer.global_step)()


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Path]:
    """A small run with checkpoints every 25 steps, and the faults of STEP."""
    config = with_callback(load_config(), "tests.runs.test_faults.Fault")
    callback_options(config, "RunCheckpoint")["every_n_steps"] = 25
    config["trainer"]["max_steps"] = 120
    yield save_config(config, tmp_path / "faulty.yaml")
    STEP.clear()


def writing_threads() -> list[threading.Thread]:
    """TensorBoard's, of which each would report its lost file some time later."""
    return [thread for thread in threading.enumerate() if "AsyncWriter" in type(thread).__name__]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 6 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small filesystem can only be mounted by root: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.root
@pytest.mark.parametrize("left", [0, 1000, 100_000])
def test_a_full_disk_ends_the_run_and_loses_nothing(
    cli: Cli, faulty: Path, capsys: pytest.CaptureFixture[str], small_disk: Path, left: int
) -> None:
    """With room left for nothing, for a few lines of the tables, or for a part of a checkpoint."""
    ballast = small_disk / "ballast"

    def fill() -> None:
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        with ballast.open("wb") as file:
            file.truncate(0)
            file.write(b"0" * max(0, free - left))

    STEP[60] = fill
    saved = ("--trainer.logger.init_args.save_dir", small_disk)
    run = small_disk / RUN
    assert cli("fit", "--config", faulty, *saved, *QUIET) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "Traceback" not in error
    assert not writing_threads()
    command = error.strip().splitlines()[-1].split()
    step = read_checkpoint(small_disk / LAST)["global_step"]
    assert step in (50, 75, 100)
    ballast.unlink()
    assert cli(*command[3:]) == 0
    assert cli("fit", "--config", faulty, *QUIET) == 0
    assert_same_results(run, RUN)


@pytest.mark.root
@pytest.mark.parametrize("command", ["analyze", "report", "sweep"])
def test_a_full_disk_is_one_line_from_every_command(
    cli: Cli, faulty: Path, capfd: pytest.CaptureFixture[str], small_disk: Path, command: str
) -> None:
    assert cli("fit", "--config", faulty, "--trainer.max_steps", 60, *QUIET) == 0
    args: dict[str, tuple[object, ...]] = {
        "analyze": ("--ckpt_path", LAST),
        "report": (RUN,),
        "sweep": ("--config", faulty, "--jobs", 1),
    }
    there = (command, *args[command], "--output_dir", small_disk / "out")
    if command == "report":
        assert cli(*there) == 0
    before = contents(small_disk)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(b"0" * 7_000_000)
    capfd.readouterr()
    assert cli(*there) == 1
    error = capfd.readouterr().err
    assert "error: " in error and "No space left on device" in error and "Traceback" not in error
    ballast.unlink()
    if command == "report":  # the earlier one is whole
        assert contents(small_disk) == before


def test_a_run_directory_removed_under_the_run(cli: Cli, faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    STEP[60] = lambda: shutil.rmtree(RUN)
    assert cli("fit", "--config", faulty, *QUIET) == 1
    error = capsys.readouterr().err
    assert "version_0 was removed while the run wrote into it" in error and "Traceback" not in error
    assert not (RUN / "metrics.csv").exists() and not LAST.exists()
    assert not writing_threads()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # Lightning has given it back


@pytest.mark.parametrize("place", ["/proc/nowhere", "taken", "taken/inside"])
def test_an_output_directory_that_can_not_be_made(
    cli: Cli, faulty: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, place: str
) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    before = contents(tmp_path)
    assert cli("fit", "--config", faulty, "--trainer.logger.init_args.save_dir", place, *QUIET) == 2
    assert re.match(rf"error: {place}\S* can't be written to: ", last_line(capsys))
    assert contents(tmp_path) == before


@pytest.mark.root
def test_a_directory_without_the_right_to_write(cli: Cli, faulty: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert cli("fit", "--config", faulty, "--trainer.logger.init_args.save_dir", small_disk, *QUIET) == 2
    assert list(small_disk.iterdir()) == []


def test_a_damaged_last_checkpoint_names_the_one_before_it(
    cli: Cli, faulty: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli("fit", "--config", faulty, "--trainer.max_steps", 60, *QUIET) == 0
    LAST.write_bytes(LAST.read_bytes()[:-5000])
    before = contents(tmp_path)
    capsys.readouterr()
    for command in (("fit", "--config", faulty), ("validate", "--config", faulty), ("analyze", "--output_dir", "out")):
        assert cli(*command, "--ckpt_path", LAST) == 2
        message = last_line(capsys)
        previous = LAST.with_name("previous.ckpt")
        assert f"{LAST} can't be read" in message and f"--ckpt_path {previous} (step 50)" in message
        assert contents(tmp_path) == before
    # It is continued from in place, and the damaged file is never taken for a good one.
    STEP[80] = lambda: read_checkpoint(LAST.with_name("previous.ckpt"))
    assert cli("fit", "--config", faulty, "--ckpt_path", previous, *QUIET) == 0
    assert cli("fit", "--config", faulty, *QUIET) == 0
    undisturbed = Path("lightning_logs/version_1")
    assert_same_results(RUN, undisturbed)
    assert not STEP
    # Without it, the newest that was kept is named.
    LAST.write_bytes(b"")
    previous.write_bytes(b"")
    shutil.copy(undisturbed / "checkpoints" / "last.ckpt", LAST.with_name("step_000120.ckpt"))
    capsys.readouterr()
    assert cli("fit", "--config", faulty, "--ckpt_path", LAST) == 2
    assert "step_000120.ckpt (step 120)" in last_line(capsys)


@pytest.mark.parametrize("name", ["metrics.csv", "head_attribution.csv", "head_patching.csv"])
@pytest.mark.parametrize("cut", [1, 30])
def test_a_table_cut_in_the_middle_of_a_line_is_mended(cli: Cli, faulty: Path, name: str, cut: int) -> None:
    assert cli("fit", "--config", faulty, "--trainer.max_steps", 40, *QUIET) == 0
    whole = (RUN / name).read_bytes()
    (RUN / name).write_bytes(whole[:-cut])
    assert cli("fit", "--config", faulty, "--trainer.max_steps", 60, "--ckpt_path", LAST, *QUIET) == 0
    assert (RUN / name).read_bytes().startswith(whole[: whole.find(b"\n40,")])
    assert int(read_table(RUN / name)[-1]["step"]) == 60


def test_a_table_damaged_in_its_middle_is_named_and_left_alone(
    cli: Cli, faulty: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli("fit", "--config", faulty, "--trainer.max_steps", 40, *QUIET) == 0
    lines = (RUN / "metrics.csv").read_text().splitlines(keepends=True)
    (RUN / "metrics.csv").write_text("".join([*lines[:2], "10,1.5\n", *lines[3:]]))
    before = contents(tmp_path)
    capsys.readouterr()
    assert cli("fit", "--config", faulty, "--ckpt_path", LAST, *QUIET) == 2
    assert "metrics.csv is damaged: line 3" in last_line(capsys)
    assert contents(tmp_path) == before


def test_only_one_of_two_continues_a_run(
    cli: Cli, faulty: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the second one's clock is behind, so that it would rename the first one's event files."""
    assert cli("fit", "--config", faulty, "--trainer.max_steps", 40, *QUIET) == 0
    second: list[object] = []

    def without_events() -> dict[str, bytes]:  # which the first run's thread writes at a time of its own
        return {name: b"" if "tfevents" in name else data for name, data in contents(tmp_path).items()}

    def resume_too() -> None:
        before = without_events()
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: 1e9)
            second.append(cli("fit", "--config", faulty, "--ckpt_path", LAST, *QUIET))
        second.append(last_line(capsys))
        second.append(without_events() == before)

    STEP[60] = resume_too
    assert cli("fit", "--config", faulty, "--ckpt_path", LAST, *QUIET) == 0
    assert second[0] == 2 and "is in use by another process" in str(second[1]) and second[2] is True
    assert cli("fit", "--config", faulty, *QUIET) == 0
    assert_same_results(RUN, Path("lightning_logs/version_1"))


def test_a_lock_is_free_when_its_process_is_killed(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.kill(os.getpid(), 9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    with locked(tmp_path), pytest.raises(ValueError, match="in use by another process"), locked(tmp_path):
        pass


def test_runs_that_start_at_the_same_moment_get_folders_of_their_own(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    taken: list[str] = []

    def start() -> None:
        logger = RunLogger(str(tmp_path))
        barrier.wait()
        taken.append(logger.log_dir)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 8


def test_a_fixed_version_is_never_overwritten(
    cli: Cli, faulty: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    args = ("fit", "--config", faulty, "--trainer.max_steps", 30, "--trainer.logger.init_args.version", "mine", *QUIET)
    assert cli(*args) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert cli(*args) == 2
    message = last_line(capsys)
    assert "from another run" in message and "--ckpt_path lightning_logs/mine/checkpoints/last.ckpt" in message
    assert contents(tmp_path) == before


def test_what_was_killed_before_its_first_checkpoint_is_started_again(cli: Cli, faulty: Path) -> None:
    """All that can be there is step 0: it is measured again, in the same place."""
    args = ("fit", "--config", faulty, "--trainer.max_steps", 30, "--trainer.logger.init_args.version", "mine", *QUIET)
    run = Path("lightning_logs/mine")
    assert cli(*args) == 0
    expected = {path.name: path.read_bytes() for path in run.glob("*.csv")}, scalars(run)
    shutil.rmtree(run / "checkpoints")
    for table in run.glob("*.csv"):
        lines = table.read_text().splitlines(keepends=True)
        table.write_text("".join(line for number, line in enumerate(lines) if not number or line.startswith("0,")))
    assert cli(*args) == 0
    assert ({path.name: path.read_bytes() for path in run.glob("*.csv")}, scalars(run)) == expected


def test_a_clock_set_back_does_not_double_points(cli: Cli, faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads the event files in the order of the seconds in their names."""
    real = time.time
    assert cli("fit", "--config", faulty, "--trainer.max_steps", 60, *QUIET) == 0
    for days, steps in ((-3, 90), (400, 100), (-5, 120)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda shift=days: real() + shift * 86_400)
            args = ("--trainer.max_steps", steps, "--ckpt_path", LAST)
            assert cli("fit", "--config", faulty, *args, *QUIET) == 0
    assert cli("fit", "--config", faulty, *QUIET) == 0
    assert_same_results(RUN, Path("lightning_logs/version_1"))
