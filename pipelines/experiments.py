"""Run a grid of runs over one store, described by one file, and compare them.

    python pipelines/experiments.py --config experiment.yaml               all rows and seeds; again: resumes
    python pipelines/experiments.py --config experiment.yaml --jobs 2      two runs at a time (auto: as many as fit)
    python pipelines/experiments.py --config experiment.yaml --dry-run     what would be run, and what is finished
    python pipelines/experiments.py --config experiment.yaml --only kd     some rows; the table shows all
    python pipelines/experiments.py --config experiment.yaml --store DIR --source.path DIR --seeds '[0]'

Settings after the options (--NAME VALUE, as of distill.py) hold for all rows. The file's format: docs/experiments.md.
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main(["experiments", *sys.argv[1:]]))
