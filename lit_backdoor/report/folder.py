"""The report's folder: written as a whole, and nothing replaced but what a report itself has written."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from lit_backdoor.runs.directory import require_new_or_empty, require_writable

MANIFEST = "report.json"
"""Lists every file of the report with its SHA-256, so that the next one knows which files are its own."""

STAGING = ".report.tmp"


def check(output_dir: Path, run_dirs: Sequence[Path]) -> None:
    """Make sure that writing a report would touch nothing else.

    The folder is new or empty; or it holds an earlier report, unchanged, whose files are then replaced. The runs that
    are reported may lie in it.

    Raises:
        ValueError: in one line, naming the file or folder in the way.
    """
    place = output_dir.resolve()
    for run in run_dirs:
        if place.is_relative_to(run.resolve()):
            raise ValueError(f"output_dir: {output_dir} lies in the run directory {run}; choose a place outside of it")
    if not output_dir.is_dir():
        return require_new_or_empty(output_dir)
    require_writable(output_dir)
    own = _own_files(output_dir)
    for name, digest in own.items():
        path = output_dir / name
        if path.exists() and _digest(path) != digest:
            raise ValueError(
                f"output_dir: {path} was changed after a report wrote it; nothing of yours is overwritten, "
                "move it away or choose another folder"
            )
    expected = {output_dir / name for name in (*own, *([MANIFEST] if own else []))}
    folders = {parent for path in expected for parent in path.parents} - {output_dir, *output_dir.parents}
    staging = output_dir / STAGING
    staged = {str(path.relative_to(staging)) for path in staging.rglob("*") if not path.is_dir() or path.is_symlink()}
    if staged <= {MANIFEST, *own, *_own_files(staging)}:  # what a killed report left behind
        expected.add(staging)
    for path in [*output_dir.iterdir(), *(path for folder in folders if folder.is_dir() for path in folder.iterdir())]:
        known = path in expected or (path in folders and path.is_dir() and not path.is_symlink())
        if known or any(run.resolve().is_relative_to(path.resolve()) for run in run_dirs):
            continue
        raise ValueError(
            f"output_dir: {output_dir} holds {path.relative_to(output_dir)}, which no report wrote; "
            "nothing is overwritten, choose another"
        )


def write_files(output_dir: Path, files: dict[str, bytes]) -> None:
    """Put ``files``, by relative path, in place of those of an earlier report, after :func:`check`.

    Everything is first written aside, so that a full disk leaves the earlier report whole.

    Raises:
        OSError: if it can't be written.
    """
    staging = output_dir / STAGING
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    staged = {MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode()} | files  # first: a kill leaves no stray file
    try:
        shutil.rmtree(staging, ignore_errors=True)
        for name, content in staged.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name in _own_files(output_dir):
            (output_dir / name).unlink(missing_ok=True)
        for name in staged:
            path = output_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (staging / name).replace(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _own_files(output_dir: Path) -> dict[str, str]:
    """What an earlier report wrote, by relative path."""
    path = output_dir / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        names = {str(name): str(digest) for name, digest in manifest.items()}
    except (ValueError, AttributeError):
        raise ValueError(f"output_dir: {path} is not the list of files that a report leaves; choose another") from None
    for name in names:
        if not Path(name).parts or Path(name).is_absolute() or ".." in Path(name).parts or (output_dir / name).is_dir():
            raise ValueError(f"output_dir: {path} lists '{name[:80]}', which is no file of a report; choose another")
    return names


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
