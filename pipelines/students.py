"""Which student? Distils several over one store with one budget, and draws accuracy against latency and size.

    python pipelines/students.py                                           the digits' eight students, or go on
    python pipelines/students.py --config students.yaml --dry-run          what would be trained, and what is finished
    python pipelines/students.py --config students.yaml --rounds 50        measure longer
    python pipelines/students.py --config students.yaml --store DIR --source.path DIR --seeds '[0]'

The file is one of pipelines/experiments.py (docs/experiments.md) whose rows are students; one with local weights has
student.weights. Settings after the options (--NAME VALUE, as of distill.py) hold for all. How to choose: docs/edge.md.
Exit status: 0 done, 1 some runs failed (the same command tries them again), 2 a mistake to be mended, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# This folder comes first on sys.path, and in it distill.py would hide the package `distill`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.config import RECIPES
from featstore.cli.recipe import run_alone
from pipelines.experiments import EXIT_FAILURES, number_of_jobs, settings

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
        path: of the experiment file.
        jobs: runs at a time; 0 chooses.
        dry_run: only say what would be run.
        batches: images per call that latency is measured with; the fronts are drawn by the first.
        threads: of one call; likewise. Those above the machine's cores are left out.
        rounds: visits of every student.
        flags: settings for all rows, by dotted name.

    Raises:
        FeatstoreError: something the user can mend.
    """
    from distill.experiments.command import conduct, report
    from distill.experiments.plan import Planner
    from distill.experiments.runs_to_do import Agenda
    from distill.experiments.spec import read_experiment
    from distill.export.onnx_model import require_installed
    from distill.students import page, tables
    from distill.students.measure import measure_students
    from featstore.files.machine import cores
    from featstore.text import columns

    require_installed()
    experiment = read_experiment(path, flags)
    agenda = Agenda(experiment, Planner(experiment))
    print("\n".join([f"{path}", *agenda.lines()]))
    if dry_run:
        return 0
    # Trained: one student for each row and seed. Frozen: the stored features. The teacher is never loaded.
    conduct(agenda, jobs=jobs)
    _, failures, _ = report(agenda)
    results, cost = agenda.outcome()
    # Measured when nothing is being trained any more.
    choice = measure_students(
        results,
        agenda.out / "onnx",
        batches=batches,
        threads=[count for count in threads if count <= cores()] or [cores()],
        rounds=rounds,
    )
    files = [*tables.write(agenda.out, choice, cost), page.write(agenda.out, choice, cost)]
    print(f"\n{columns(tables.cells(choice))}\n")
    print("\n".join([tables.finding(choice), *tables.notes(choice, cost)]))
    print("files: " + ", ".join(str(item) for item in files))
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return EXIT_FAILURES if failures else 0


def parse(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Arguments of ``main`` from the command line.

    Raises:
        ConfigError: a setting without a value.
        SystemExit: an unknown option (status 2, after a message).
    """
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=rest,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", dest="path", type=Path, default=DEFAULT_RECIPE, metavar="FILE")
    add("--jobs", type=number_of_jobs, default=0, metavar="N|auto", help="runs at a time")
    add("--dry-run", "--dry_run", action="store_true", help="say what would be run")
    add("--batches", type=_positive, nargs="+", default=[1, 8], metavar="N", help="images per call")
    add("--threads", type=_positive, nargs="+", default=[1, 2], metavar="N", help="of one call")
    add("--rounds", type=_positive, default=20, metavar="N", help="visits of every student")
    known, others = parser.parse_known_args(arguments)
    return {**vars(known), "flags": settings(others)}


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 on")
    return int(text)


def run() -> int:
    """Parse the command line, run ``main``, and turn our errors into one message and an exit status."""
    return run_alone(lambda: main(**parse()))


if __name__ == "__main__":
    sys.exit(run())
