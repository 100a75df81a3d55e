"""Measure an exported student: accuracy, calibration, its features, agreement with the teacher, corruptions.

    accelerate launch pipelines/evaluate.py --model outputs/digits/distill/customkd/seed0
    accelerate launch pipelines/evaluate.py --model RUN --source.path LABELLED      any backbone, on images with labels
    accelerate launch pipelines/evaluate.py --model RUN --eval.corruptions '[all]'  also on corrupted pictures

About 15 s on the embedded digits. Images and store are those of the run unless others are named; no teacher is needed.
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
