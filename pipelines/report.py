"""Draw the pages of finished runs again: report.html in every run's folder, and one that compares all of them.

    python pipelines/report.py                               the embedded default, about 10 s
    python pipelines/report.py --out outputs/mine/distill

Reads the folders only: no GPU, no store, no image. What a run kept at its end (thumbnails, feature maps) is shown
again.
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.config import RECIPES, ReportConfig
from featstore.cli.recipe import run_main

DEFAULT_RECIPE = RECIPES / "report.yaml"


def main(config: ReportConfig) -> list[Path]:
    """Draw everything. Returns the paths of the pages, the comparison last.

    Raises:
        FeatstoreError: something the user can mend.
    """
    from distill.reports import report

    # Nothing is trained and nothing is measured: all numbers come from the runs' own files.
    pages = report.rebuild(Path(config.out))
    for page in pages:
        print(page)
    print(f"\n{len(pages) - 1} runs; compared in {pages[-1]}")
    return pages


if __name__ == "__main__":
    run_main(main, ReportConfig, default_recipe=DEFAULT_RECIPE)
