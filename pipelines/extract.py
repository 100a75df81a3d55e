"""Phase one: run a frozen teacher once over the images and write its features into a store.

    accelerate launch pipelines/extract.py                                     the embedded digits, about 30 s
    accelerate launch pipelines/extract.py --config recipe.yaml --dry_run      print the plan and stop
    accelerate launch pipelines/extract.py --config recipe.yaml                start, or go on where it stopped
    accelerate launch pipelines/extract.py --config recipe.yaml --repair       check, make damaged shards again
    accelerate launch pipelines/extract.py --config recipe.yaml --append true  more images: add those that are new

Several GPUs: accelerate launch --multi_gpu pipelines/extract.py ...
"""

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; the packages lie one level higher, also when nothing is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from featstore.cli.recipe import run_main
from featstore.extraction.config import DEFAULT_RECIPE, ExtractConfig
from featstore.extraction.run import run

if __name__ == "__main__":
    run_main(run, ExtractConfig, default_recipe=DEFAULT_RECIPE)
