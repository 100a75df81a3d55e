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

from distill.config import RECIPES
from distill.export.config import ExportConfig
from featstore.cli.recipe import run_main
from featstore.errors import ConfigError

DEFAULT_RECIPE = RECIPES / "export.yaml"


def main(config: ExportConfig) -> dict[str, object]:
    """Export one run and measure every file on its test images. Returns what is also written to export.json.

    Raises:
        FeatstoreError: something the user can mend.
    """
    from distill.export.edge import export_run
    from distill.export.manifest import table
    from featstore.extraction.accelerator import start_accelerator

    accelerator = start_accelerator()
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"an export is the work of one process, {accelerator.num_processes} were started: "
            "accelerate launch --num_processes 1 pipelines/export.py"
        )
    # Nothing is trained, unless int8 loses too much: then the student, for a few epochs.
    manifest = export_run(config, say=accelerator.print)
    folder = Path(config.out or Path(config.model) / "export")
    print(f"\n{table(manifest)}\n")
    for note in manifest["notes"]:
        print(f"note: {note}")
    print(f"written to {folder}; what it is and how to load it: {folder / 'README.md'}")
    return manifest


if __name__ == "__main__":
    run_main(main, ExportConfig, default_recipe=DEFAULT_RECIPE)
