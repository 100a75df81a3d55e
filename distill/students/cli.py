"""``distill students``: distil several students over one store, and draw accuracy against latency and size."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.config import RECIPES
from distill.experiments.cli import checked, parser_of, settings, status
from featstore.cli.recipe import run_alone

DEFAULT_RECIPE = RECIPES / "students.yaml"


def main(
    path: Path = DEFAULT_RECIPE,
    *,
    jobs: int = 0,
    dry_run: bool = False,
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] = (1, 2),
    rounds: int = 20,
    flags: dict[str, Any] | None = None,
) -> int:
    """Train, export, measure, draw. Returns the exit status.

    Args:
        jobs: runs at a time; 0 chooses.
        dry_run: only say what would be run.
        batches: images per call that latency is measured with; the fronts are drawn by the first.
        threads: of one call; likewise. Those above the machine's cores are left out.
        flags: settings for all rows, by dotted name.

    Raises:
        FeatstoreError: something the user can mend.
    """
    from distill.experiments.command import locked, report, run_all
    from distill.export.onnx_model import require_installed
    from distill.students import page, tables
    from distill.students.measure import measure_students
    from featstore.display.text import columns
    from featstore.files.limits import cores

    require_installed()
    todo = checked(path, flags)
    if dry_run:
        return 0
    with locked(todo):
        # Trained: one student for each row and seed. Frozen: the stored features. The teacher is never loaded.
        run_all(todo, jobs=jobs)
        _, failures, _ = report(todo)
        results, cost = todo.outcome()
        # Measured when nothing is being trained any more.
        choice = measure_students(
            results,
            todo.out / "onnx",
            batches=batches,
            threads=[count for count in threads if count <= cores()] or [cores()],
            rounds=rounds,
        )
        files = [
            *tables.write_students_tables(todo.out, choice, cost),
            page.write_students_page(todo.out, choice, cost),
        ]
    print(f"\n{columns(tables.student_cells(choice))}\n")
    print("\n".join([tables.finding(choice), *tables.student_notes(choice, cost)]))
    print("files: " + ", ".join(str(item) for item in files))
    return status(failures)


def parse(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Arguments of ``main`` from the command line.

    Raises:
        ConfigError: a setting without a value.
        SystemExit: an unknown option (status 2, after a message).
    """
    parser = parser_of(
        "students",
        "Distil several students over one store with one budget; draw accuracy against latency and size.",
        default=DEFAULT_RECIPE,
    )
    for name, default, text in (
        ("batches", [1, 8], "images per call (default: 1 8)"),
        ("threads", [1, 2], "threads per call (default: 1 2)"),
        ("rounds", 20, "measurements of every student (default: 20)"),
    ):
        several = "+" if isinstance(default, list) else None
        parser.add_argument(
            f"--{name}", type=_positive, nargs=several, default=default, metavar="N", help=text
        )
    known, others = parser.parse_known_args(arguments)
    return {**vars(known), "flags": settings(others)}


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 on")
    return int(text)


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run ``main``, and turn our errors into one message and an exit status."""
    return run_alone(lambda: main(**parse(argv)))
