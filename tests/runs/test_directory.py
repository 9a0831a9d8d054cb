"""In which run a checkpoint lies, where there are links."""

import os
from pathlib import Path

from lit_backdoor.runs.directory import RunStart, run_of_checkpoint


def test_the_run_of_a_checkpoint(tmp_path: Path) -> None:
    """A folder that is a link counts as it is called, a file that is one as what it names."""
    run, disk = tmp_path / "run", tmp_path / "disk"
    for folder in (run, disk / "abc", disk / "checkpoints"):
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    assert run_of_checkpoint(run / "last.ckpt") is None
    for target in (disk / "abc", disk / "checkpoints"):
        (run / "checkpoints").symlink_to(target)
        start = RunStart(run / "checkpoints" / "last.ckpt", 5)
        assert start.source == run and start.continues
        assert run_of_checkpoint(run / "checkpoints" / ".." / "checkpoints" / "last.ckpt") == run
        (tmp_path / "last.ckpt").symlink_to(Path("run", "checkpoints", "last.ckpt"))
        start = RunStart(tmp_path / "last.ckpt", 5)
        assert start.source == run and start.continues
        (tmp_path / "last.ckpt").unlink()
        (run / "checkpoints").unlink()
    (run / "checkpoints").mkdir()
    os.symlink("last.ckpt", run / "checkpoints" / "last.ckpt")  # a link to itself
    assert run_of_checkpoint(run / "checkpoints" / "last.ckpt") == run
