"""Align a teacher that writes text to its students: candidates, scores by students, preference pairs, DPO.

    python pipelines/prefer.py --config pipelines/recipes/arte/prefer.yaml    start, or resume

The steps and their files: docs/tasks.md. Any causal language model by folder or name, of teacher and students.
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main(["prefer", *sys.argv[1:]]))
