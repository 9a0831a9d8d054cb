"""The notebook runs from top to bottom, and the file shows what it gives."""

from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import ROOT

PATH = ROOT / "examples" / "watch_a_backdoor.ipynb"
N_PICTURES = 4


def pictures(notebook: Any) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_file_has_its_pictures_and_no_warnings() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # run once, from top to bottom
    assert pictures(notebook) == N_PICTURES
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert "/site-packages" not in PATH.read_text()


@pytest.mark.slow
def test_it_runs_and_draws(tmp_path: Any) -> None:
    notebook = nbformat.read(PATH, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert pictures(notebook) == N_PICTURES
