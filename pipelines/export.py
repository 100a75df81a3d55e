"""Take a finished run to the edge: timm folder, ONNX, int8, torch.export, ExecuTorch, preprocessing rule, model card.

    accelerate launch pipelines/export.py                                     the digits' student, about 1 minute
    accelerate launch pipelines/export.py --model outputs/distill/customkd/seed0 --formats '[onnx,int8]'
    accelerate launch pipelines/export.py --bake_normalisation --uint8_input  the graph takes bytes

What is not installed is left out with a sentence, unless --formats names it. How to use the files: docs/edge.md.
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
