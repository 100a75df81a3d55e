"""Which student? Distil several over one store with one budget; accuracy against latency and size.

    python pipelines/students.py                                           the digits' eight students; again: resumes
    python pipelines/students.py --config students.yaml --dry-run          what would be trained, and what is finished
    python pipelines/students.py --config students.yaml --rounds 50        measure longer
    python pipelines/students.py --config students.yaml --store DIR --source.path DIR --seeds '[0]'

The file is one of pipelines/experiments.py (docs/experiments.md) whose rows are students. How to choose: docs/edge.md.
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main(["students", *sys.argv[1:]]))
