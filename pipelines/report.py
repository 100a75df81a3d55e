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

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
