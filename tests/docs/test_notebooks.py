"""The notebooks run from top to bottom, and keep small outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources).execute()
    again = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert list(map(kinds, again)) == list(map(kinds, shown))


def kinds(outputs):
    return [output.output_type for output in outputs if output.get("name") != "stderr"]


def test_both_are_found_and_small():
    assert [path.stem for path in NOTEBOOKS] == ["one-step", "your-rewards"]
    assert all(path.stat().st_size < 60_000 for path in NOTEBOOKS)
