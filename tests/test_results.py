"""The pages of docs/results show what their CSV files hold."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_tables_of_the_results_agree_with_their_csv_files() -> None:
    """Every marked table is what the script draws from the committed CSV."""
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "results"), "draw", "--check"],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
