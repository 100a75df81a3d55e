"""Search for a student's architecture over a store, by scores of untrained models and under limits. Nothing is trained.

    accelerate launch pipelines/search.py                                         the embedded digits
    accelerate launch pipelines/search.py --config search.yaml --limit.macs 5e6   start, or resume
    accelerate launch pipelines/search.py --config search.yaml --against RUNS     do the scores rank finished runs?

The file: docs/students.md. Parameters and multiply-adds stand beside every score; the largest student that fits is the
baseline.
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
