"""``featstore extract``, and what ``pipelines/extract.py`` runs: flags and a recipe become an extraction."""

from collections.abc import Sequence

from featstore.cli.recipe import run_main
from featstore.extraction.config import DEFAULT_RECIPE, ExtractConfig
from featstore.extraction.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run an extraction.

    Returns:
        0. An error ends the process with a message and another exit status.
    """
    run_main(run, ExtractConfig, default_recipe=DEFAULT_RECIPE, argv=argv)
    return 0
