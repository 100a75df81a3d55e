"""Check all runs of an experiment, train them one or several at a time, show progress, write the tables."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from distill.experiments import table
from distill.experiments.machine import devices, slots
from distill.experiments.plan import PlannedRun
from distill.experiments.pool import Event, Failure, OnEvent, Pool, Slot, work_here
from distill.experiments.runs_to_do import RunsToDo
from distill.experiments.tune import Result
from distill.measures.score import part_of, score_of
from distill.register import load_plugins
from distill.reports.report import draw_comparison
from distill.training.run_folder import lock
from featstore.display.text import columns
from featstore.errors import FeatstoreError, command
from featstore.files.locks import LOCK_NAME

if TYPE_CHECKING:
    from distill.experiments.worker import RunWorker

RunThem = Callable[[Sequence[PlannedRun], OnEvent], None]
Say = Callable[[str], None]


def make_worker(slot: Slot) -> "RunWorker":
    """Make the worker's trainer. Torch is imported here, after the number of threads is set."""
    from distill.experiments.worker import RunWorker

    return RunWorker(slot)


def _make_in_worker(slot: Slot, plugins: Sequence[str]) -> "RunWorker":
    """As ``make_worker``, in a new process, where the user's methods have to be registered again."""
    load_plugins(plugins)
    return make_worker(slot)


def run_all(todo: RunsToDo, *, jobs: int, say: Say = tqdm.write) -> None:
    """Train all runs that are not finished.

    Args:
        jobs: runs at a time; 0 chooses by GPUs, cores and memory.

    Raises:
        FeatstoreError: a run cannot start with its settings, its data or what lies in its folder; none was started.
    """
    tuning, finals = todo.left(todo.tuning()), todo.left(todo.finals())
    undecided = len(todo.experiment.seeds) * len(todo.undecided())
    if not tuning and not finals and not undecided:
        return
    worker = make_worker(Slot(0, 1))
    steps = _check(worker, [*tuning, *finals])
    for note in worker.notes:
        say(f"note: {note}")
    most = max(len(tuning), len(finals) + undecided)
    places = slots(jobs, most, run_bytes=_largest(todo.results), gpus=devices())
    say(f"{len(places)} at a time, with {places[0].threads} cores each")
    with _workers(places, worker, todo.experiment.plugins) as run_them:
        if undecided:
            _phase("tuning", tuning, steps, run_them, todo, say)
            for line in todo.decide():
                say(f"chosen  {line}")
            finals = todo.left(todo.finals())
            steps |= _check(worker, finals)
        _phase("runs", finals, steps, run_them, todo, say)


def locked(todo: RunsToDo) -> contextlib.AbstractContextManager[None]:
    """Lock the experiment's folder, so that no second command writes to it.

    Raises:
        StoreBusy: Another process runs an experiment there.
    """
    return lock(todo.out / LOCK_NAME, f"--out {todo.out.absolute()}")


@contextlib.contextmanager
def _workers(
    places: Sequence[Slot], worker: "RunWorker", plugins: Sequence[str]
) -> Iterator[RunThem]:
    """Train runs in this process, or in several worker processes."""
    if len(places) == 1:
        worker.slot = places[0]
        yield lambda runs, on_event: work_here(worker, runs, on_event)
        return
    with Pool(partial(_make_in_worker, plugins=plugins), places) as pool:
        yield pool.run


def _check(worker: "RunWorker", runs: Sequence[PlannedRun]) -> dict[str, int]:
    """Check every run. Returns its optimiser steps by key."""
    steps = {}
    for run in runs:
        try:
            steps[run.key] = worker.check(run)
        except FeatstoreError as error:
            raise type(error)(f"{run.label}: {error}") from error
    return steps


def _phase(
    title: str,
    runs: Sequence[PlannedRun],
    steps: dict[str, int],
    run_them: RunThem,
    todo: RunsToDo,
    say: Say,
) -> None:
    if not runs:
        return
    with _Progress(title, runs, [steps[run.key] for run in runs], todo.results, say) as progress:
        run_them(runs, progress)


class _Progress:
    """One progress bar over all runs of a phase, in optimiser steps, and a line per finished run."""

    def __init__(
        self,
        title: str,
        runs: Sequence[PlannedRun],
        steps: Sequence[int],
        results: dict[str, Result],
        say: Say,
    ) -> None:
        self._title, self._runs, self._steps = title, runs, steps
        self._results, self._say = results, say
        self._seen = [0] * len(runs)
        self._ended = 0
        self._bar = tqdm(total=sum(steps), unit="step", disable=None, leave=False)
        self._show()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._bar.close()

    def __call__(self, event: Event) -> None:
        """Handle an event of a run."""
        run = self._runs[event.item]
        if event.kind == "progress":
            self._advance(event.item, int(event.value))
        elif event.kind in ("done", "failed"):
            self._results[run.key] = event.value
            self._ended += 1
            self._advance(event.item, self._steps[event.item])
            self._say(f"[{self._ended}/{len(self._runs)}] {self._line(run, event)}")
            self._show()

    def _advance(self, item: int, steps: int) -> None:
        self._bar.update(steps - self._seen[item])
        self._seen[item] = steps

    def _show(self) -> None:
        self._bar.set_description(f"{self._title} {self._ended}/{len(self._runs)}")

    def _line(self, run: PlannedRun, event: Event) -> str:
        if isinstance(event.value, Failure):
            first = event.value.message.splitlines()[0]
            return f"{run.label}: FAILED, {event.value.kind}: {first} ({run.folder})"
        measure, value = score_of(event.value)
        return (
            f"{run.label}: {part_of(event.value)} {measure.label} {measure.text(value)}, "
            f"{event.value['seconds']:.1f} s"
        )


def _largest(results: dict[str, Result]) -> int:
    """Peak memory of the finished runs in bytes; 0 if there is none."""
    sizes = [item["peak_memory_mb"] for item in results.values() if not isinstance(item, Failure)]
    return int(max(sizes, default=0) * 2**20)


def report(todo: RunsToDo, say: Say = tqdm.write) -> tuple[str, list[str], list[Path]]:
    """Compare the finished runs and write the tables.

    Args:
        say: called with a message if the page cannot be drawn; all other files are written.

    Returns:
        The table with its notes as text, a line for each run that failed, and the files written.
    """
    results, cost = todo.outcome()
    parts = {part_of(record) for result in results for record in result.records.values()}
    rows = table.cells(results, todo.experiment.seeds, " or ".join(sorted(parts)) or "test")
    said = table.notes(todo.experiment, results, cost)
    files = table.write_experiment(todo.out, todo.experiment, results, cost, rows, said)
    if any(
        run.config.report for result in results for run in result.runs.values() if result.records
    ):
        try:
            files.append(draw_comparison(todo.out))
        except Exception as error:  # a page that cannot be drawn must not lose the table
            say(
                f"warning: the page could not be drawn ({type(error).__name__}: {error}); try again"
            )
            say(f"with: {command('report')} --out {todo.out}")
    failures = [
        f"{result.row.name} seed {seed}: {failure.kind}: {failure.message}"
        + (f" ({result.runs[seed].folder})" if seed in result.runs else "")
        for result in results
        for seed, failure in result.failures.items()
    ]
    return "\n".join([columns(rows), "", *said]), failures, files
