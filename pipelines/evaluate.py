"""Measure an exported student: accuracy, calibration, its features, agreement with the teacher, corruptions.

    accelerate launch pipelines/evaluate.py --model outputs/digits/distill/customkd/seed0 --store outputs/digits/store
    accelerate launch pipelines/evaluate.py --config recipe.yaml              any model, any source
    accelerate launch pipelines/evaluate.py --eval.corruptions '[all]'        also on corrupted pictures

About 15 s on the embedded digits. Without --store the student is measured alone; no teacher is needed either way.
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
