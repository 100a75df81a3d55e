"""The ``distill`` command, also ``python -m distill`` and ``accelerate launch -m distill``.

Nothing heavy is imported before recipe and flags are checked.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distill.commands import evaluate, export, report, train
from distill.commands.config import EvaluateConfig, ReportConfig
from distill.config import RECIPES, DistillConfig
from distill.export.config import ExportConfig
from featstore.cli.recipe import run_main
from featstore.errors import command
from featstore.format.version import __version__

COMMANDS = {
    "run": "train students from a feature store and images",
    "evaluate": "measure a trained student on any images",
    "export": "export a trained student: ONNX, int8, ExecuTorch, model card",
    "report": "draw the pages of finished runs again",
    "experiments": "run many settings and seeds over one store from one file, and compare them",
    "students": "compare students: accuracy against latency and size",
    "search": "find a student's architecture under limits, without training",
    "prefer": "align a teacher that writes text to its students, by their preferences",
}
"""Name and summary of each command, in the order of the help."""

EXAMPLES = (
    "distill run --store STORE --source.path PHOTOS --data.holdout 0.2 --methods '[auto]' --auto.budget 2h",
    "distill run --store STORE --source.path PHOTOS                 a backbone; no label is needed",
    "distill evaluate --model outputs/distill/customkd/seed0",
)
"""What the help shows; the first one chooses method and weights automatically."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Flags without a command are those of ``run``."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["--version"], ["version"]):
        print(__version__)
        return 0
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage())
        return 0
    name = "run" if words[0].startswith("-") else words.pop(0)
    if name not in COMMANDS:
        print(f"error: {name}: there is no such command.\n\n{usage()}", file=sys.stderr)
        return 2
    return RUN[name](words) or 0


def usage() -> str:
    """What ``--help`` prints."""
    lines = [f"  {name:<12} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: distill COMMAND [--config FILE] [--NAME VALUE ...]",
            "",
            "Train small students from the stored features of a large teacher, measure and export them.",
            "",
            *lines,
            "",
            "examples:",
            *(f"  {line}" for line in EXAMPLES),
            "",
            "distill COMMAND --help shows its settings. Several GPUs: accelerate launch --multi_gpu -m distill run ...",
        ]
    )


def _run(words: Sequence[str]) -> None:
    from distill.register import kinds

    if _holds_pictures(words):
        words = ["--source.kind", "store", *words]
    run_main(
        train.run,
        DistillConfig,
        default_recipe=RECIPES / "distill.yaml",
        own_recipe=RECIPES.parent / "own_images.yaml",
        argv=words,
        extend=kinds,
        program=command("distill"),
    )


def _holds_pictures(words: Sequence[str]) -> bool:
    """Whether a command names no images, but a folder whose store provides them."""
    from featstore.errors import StoreError
    from featstore.format.manifest import read_manifest
    from featstore.reading.stored_pictures import provides_images

    words = [part for word in words for part in word.split("=", 1)]
    if {"--source.path", "--source.kind", "--config"} & {*words} or "--store" not in words[:-1]:
        return False
    try:
        manifest = read_manifest(Path(words[words.index("--store") + 1]))
    except (StoreError, OSError):
        return False
    return provides_images(manifest)


def _with_recipe(
    name: str, run: Callable[[Any], object], config: type[Any], words: Sequence[str]
) -> None:
    recipe = RECIPES / f"{name}.yaml"
    run_main(run, config, default_recipe=recipe, argv=words, program=command(name))


def _evaluate(words: Sequence[str]) -> None:
    _with_recipe("evaluate", evaluate.run, EvaluateConfig, words)


def _export(words: Sequence[str]) -> None:
    _with_recipe("export", export.run, ExportConfig, words)


def _report(words: Sequence[str]) -> None:
    _with_recipe("report", report.run, ReportConfig, words)


def _search(words: Sequence[str]) -> None:
    from distill.search import search
    from distill.search.config import SearchConfig

    of_runs = any(word.partition("=")[0] == "--slices" for word in words)
    recipe = None if of_runs else RECIPES / "search.yaml"
    run_main(search.run, SearchConfig, default_recipe=recipe, argv=words, program=command("search"))


def _prefer(words: Sequence[str]) -> None:
    from distill.preferences import prefer
    from distill.preferences.config import PreferConfig

    run_main(prefer.run, PreferConfig, default_recipe=None, argv=words, program=command("prefer"))


def _experiments(words: Sequence[str]) -> int:
    from distill.experiments import cli

    return cli.run(words)


def _students(words: Sequence[str]) -> int:
    from distill.students import cli

    return cli.run(words)


RUN: dict[str, Callable[[Sequence[str]], int | None]] = {
    "run": _run,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
    "experiments": _experiments,
    "students": _students,
    "search": _search,
    "prefer": _prefer,
}

if __name__ == "__main__":
    sys.exit(main())
