"""Align a teacher that writes text to its students: candidates, scores by students, preference pairs, DPO.

    python pipelines/prefer.py --config prefer.yaml --teacher TEACHER --students '{small: STUDENT}'    start, or resume

Any causal language model by folder or name. Steps and files: pipelines/recipes/arte/README.md.
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main(["prefer", *sys.argv[1:]]))
