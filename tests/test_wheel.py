"""A wheel, installed outside the clone, runs the README's first analysis and the example of docs/callbacks.md."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.runs import read_rows

SOURCES = ("lit_backdoor", "configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment that has the wheel of its own, and this environment's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, folder / "source"], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, timeout=300)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def run(environment: Path, folder: Path, *args: str) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [environment / "bin" / "python", "-W", "ignore", *args]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_first_analysis_and_the_example(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "-c", "import lit_backdoor; print(lit_backdoor.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    assert "model of a + b mod 113, 1" in run(
        installed, tmp_path, "-m", "lit_backdoor", "analyze", "--pretrained", "mod1", "--output_dir", "mod1"
    )
    summary = json.loads((tmp_path / "mod1" / "summary.json").read_text())
    assert summary["accuracy"]["backdoor"] == 1.0 and summary["n_examples"] == 113 * 113
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "callbacks.md").read_text(), re.DOTALL)
    (tmp_path / "my_task.py").write_text(example)
    run(installed, tmp_path, "my_task.py")
    assert len(read_rows(tmp_path / "lightning_logs" / "version_0" / "head_patching.csv")) > 10
