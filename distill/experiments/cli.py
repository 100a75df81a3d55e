"""``distill experiments``: run a file of rows, grid and tuning, and print its table."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.cli.recipe import run_alone, split_flags
from featstore.cli.yaml_with_lines import Node, parse_flag
from featstore.errors import ConfigError, command

if TYPE_CHECKING:
    from distill.experiments.runs_to_do import RunsToDo

EXIT_FAILURES = 1  # exit status when some runs failed


def main(
    path: Path,
    *,
    jobs: int = 0,
    only: Sequence[str] = (),
    dry_run: bool = False,
    flags: dict[str, Any] | None = None,
) -> int:
    """Run an experiment and print its table. Returns the exit status.

    Args:
        jobs: runs at a time; 0 chooses.
        only: variants or rows to run; empty for all.
        dry_run: only say what would be run.
        flags: settings for all rows, by dotted name.

    Raises:
        FeatstoreError: something the user can mend; nothing was started.
    """
    from distill.experiments.command import locked, report, run_all

    todo = checked(path, flags, only)
    if dry_run:
        return 0
    with locked(todo):
        try:
            # Trained: one student for each run. Frozen: the stored features. The teacher is never loaded.
            run_all(todo, jobs=jobs)
        except KeyboardInterrupt:
            report(todo)
            raise
        text, failures, files = report(todo)
    print(f"\n{text}\n")
    print("files: " + ", ".join(str(item) for item in files))
    return status(failures)


def checked(path: Path, flags: Mapping[str, Any] | None, only: Sequence[str] = ()) -> "RunsToDo":
    """Read an experiment, check the settings of every run, and print what is to be done."""
    from distill.experiments.plan import Planner
    from distill.experiments.runs_to_do import RunsToDo
    from distill.experiments.spec import read_experiment

    experiment = read_experiment(path, flags)
    todo = RunsToDo(experiment, Planner(experiment), only)
    print("\n".join([f"{path}", *todo.lines()]))
    return todo


def status(failures: Sequence[str]) -> int:
    """Print the runs that failed. Returns the exit status."""
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if failures:
        print("run the same command again to try the failed ones again", file=sys.stderr)
    return EXIT_FAILURES if failures else 0


def parse(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Arguments of ``main`` from the command line.

    Raises:
        ConfigError: a setting without a value.
        SystemExit: an unknown option (status 2, after a message).
    """
    summary = "Run a grid of runs over one store, described by one file, and compare them."
    parser = parser_of("experiments", summary, required=True)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="variants or rows to run (default: all)",
    )
    known, others = parser.parse_known_args(arguments)
    return {**vars(known), "flags": settings(others)}


EPILOG = """\
Settings after the options (--NAME VALUE, as of the run command) hold for all rows. The file's format:
docs/experiments.md. Exit status: 0 done, 1 some runs failed (run the same command again to try them again), 2 a mistake
in file, flags or data, 130 interrupted.
"""


def parser_of(name: str, summary: str, **config: Any) -> argparse.ArgumentParser:
    """The parser of a command whose file is an experiment; ``config`` holds further options of ``--config``."""
    parser = argparse.ArgumentParser(
        prog=command(name),
        description=summary,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", dest="path", type=Path, metavar="FILE", **config)
    add(
        "--jobs",
        type=number_of_jobs,
        default=0,
        metavar="N|auto",
        help="runs at a time (default: auto, by GPUs, cores and memory)",
    )
    add("--dry-run", "--dry_run", action="store_true", help="print the runs and stop")
    return parser


def number_of_jobs(text: str) -> int:
    """A number from 1 on; 0 for auto."""
    if text != "auto" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: expected auto, or a number from 1 on")
    return 0 if text == "auto" else int(text)


def settings(arguments: Sequence[str]) -> dict[str, Node]:
    """``--train.lr 0.01`` and ``--train.lr=0.01``, as values by name. Raises ConfigError: a setting without a value."""
    found = {}
    for name, text in split_flags(arguments):
        if text is None:
            raise ConfigError(f"--{name}: expected --NAME VALUE. See --help.")
        found[name] = parse_flag(name, text)
    return found


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run ``main``. Returns the exit status; a FeatstoreError becomes one message."""
    return run_alone(lambda: main(**parse(argv)))
