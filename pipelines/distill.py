"""Phase two: train students from a feature store and images. The teacher is neither needed nor loaded.

    accelerate launch pipelines/distill.py --methods '[auto]'                 try methods and weights, train the best
    accelerate launch pipelines/distill.py                                    the embedded digits, 1 to 2 minutes
    accelerate launch pipelines/distill.py --config recipe.yaml               start, or go on where it stopped
    accelerate launch pipelines/distill.py --methods '[labels,customkd]' --seeds '[0,1,2]'

Several GPUs: accelerate launch --multi_gpu pipelines/distill.py ...
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
