"""Phase two: train students from a feature store and images. The teacher is neither needed nor loaded.

    accelerate launch pipelines/distill.py                                    the embedded digits, 1 to 2 minutes
    accelerate launch pipelines/distill.py --config recipe.yaml               start, or go on where it stopped
    accelerate launch pipelines/distill.py --methods '[labels,customkd]' --seeds '[0,1,2]'

Several GPUs: accelerate launch --multi_gpu pipelines/distill.py ...
"""

import sys
from pathlib import Path

# This folder comes first on sys.path, and in it this very file would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.config import RECIPES, DistillConfig
from distill.register import kinds
from distill.training.run import run
from featstore.cli.recipe import run_main

DEFAULT_RECIPE = RECIPES / "distill.yaml"

if __name__ == "__main__":
    run_main(run, DistillConfig, default_recipe=DEFAULT_RECIPE, extend=kinds)
