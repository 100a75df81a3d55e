"""The notebook runs from top to bottom in a fresh kernel, and is stored without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "two_phases.ipynb"

EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
print("\\n".join(str(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"))
"""


def test_the_notebook_holds_no_outputs() -> None:
    """So that changes are readable, and nothing of a machine is published."""
    cells = [
        cell for cell in json.loads(NOTEBOOK.read_bytes())["cells"] if cell["cell_type"] == "code"
    ]
    assert len(cells) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Both phases, and a look into the store, in an empty folder."""
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(tmp_path),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert "customkd" in done.stdout
    assert "(True, " in done.stdout
