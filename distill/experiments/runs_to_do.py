"""The runs of an experiment by state: finished, begun, new; and their results."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.experiments.cost import ExperimentCost, cost_of
from distill.experiments.plan import (
    PlannedRun,
    Planner,
    Row,
    baseline_of,
    in_order,
    rows_of,
    select_rows,
    unique,
)
from distill.experiments.pool import Failure
from distill.experiments.results import RowResult, compare_rows
from distill.experiments.spec import Experiment
from distill.experiments.tune import Result, choose_try, is_current, read_choices, write_choices


class RunsToDo:
    """All runs of an experiment, with their results as they come in.

    Making one makes the settings of every run, so that a mistake in the last row is found before the first one starts.

    Attributes:
        rows: all of them.
        selected: names of those that are to be run.
        tries: tuning runs by row: for every setting one per tuning seed.
        choices: what tuning decided, by row.
        results: record or failure by the key of a run.

    Raises:
        ConfigError: see ``Planner``, ``baseline_of`` and ``select``.
        StoreError: a store is not there.
    """

    def __init__(self, experiment: Experiment, planner: Planner, only: Sequence[str] = ()) -> None:
        self.experiment = experiment
        self.out = Path(experiment.out)
        self.rows = rows_of(experiment)
        self.selected = {row.name for row in select_rows(experiment, self.rows, only)}
        self.results: dict[str, Result] = {}
        self._baseline = baseline_of(experiment, self.rows)
        self._planner = planner
        self._untuned: dict[str, Failure] = {}
        self.tries = {row.name: planner.tries(row) for row in self.rows}
        for row in self.rows:
            for tried in row.search or [{}]:
                planner.run(row, experiment.seeds[0], tried)
        self._kept = read_choices(self.out)
        self.choices = {
            name: self._kept[name]
            for name, tries in self.tries.items()
            if tries and name in self._kept and is_current(self._kept[name], tries)
        }

    def undecided(self) -> list[Row]:
        """Selected rows whose settings are not chosen yet."""
        return [
            row for row in self._selected() if self.tries[row.name] and row.name not in self.choices
        ]

    def tuning(self) -> list[PlannedRun]:
        """Tuning runs of the undecided rows."""
        return [run for row in self.undecided() for group in self.tries[row.name] for run in group]

    def finals(self) -> list[PlannedRun]:
        """Final runs of the selected rows whose settings are chosen."""
        return [run for row in self._selected() for run in self._final(row).values()]

    def left(self, wanted: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Runs that are not finished, each once, in the order of training."""
        missing = []
        for key, run in unique(wanted).items():
            record = run.record()
            if record is None:
                missing.append(run)
            else:
                self.results[key] = record
        return in_order(missing)

    def decide(self) -> list[str]:
        """Choose the settings of the undecided rows whose tuning runs are finished. Returns a line for each."""
        lines = []
        for row in self.undecided():
            decided = choose_try(row, self.tries[row.name], self.results)
            if isinstance(decided, Failure):
                self._untuned[row.name] = decided
                lines.append(f"{row.name}: {decided.message}")
                continue
            self.choices[row.name] = decided
            write_choices(self.out, self._kept | self.choices)
            best = decided.tries[decided.chosen]
            measure = decided.measure
            lines.append(
                f"{row.name}: {best.settings} with {measure.label} {measure.text(best.mean)} on validation"
            )
        return lines

    def outcome(self) -> tuple[list[RowResult], ExperimentCost]:
        """Compare all rows, selected or not. Returns them and the cost of all runs."""
        planned = {row.name: self._final(row) for row in self.rows}
        finals = [run for of_row in planned.values() for run in of_row.values()]
        tuned = [run for tries in self.tries.values() for group in tries for run in group]
        made = unique([*finals, *tuned])
        records = {key: run.record() for key, run in made.items()}
        count = Counter(run.key for run in finals)
        rows = []
        for row in self.rows:
            of_row = {seed: made[run.key] for seed, run in planned[row.name].items()}
            failed = {seed: self.results.get(run.key) for seed, run in of_row.items()}
            failures = {seed: item for seed, item in failed.items() if isinstance(item, Failure)}
            if row.name in self._untuned:
                failures = dict.fromkeys(self.experiment.seeds, self._untuned[row.name])
            known = {seed: records[run.key] for seed, run in of_row.items()}
            rows.append(
                RowResult(
                    row=row,
                    runs=of_row,
                    records={seed: record for seed, record in known.items() if record},
                    failures=failures,
                    shared=[seed for seed, run in of_row.items() if count[run.key] > 1],
                    choice=self.choices.get(row.name),
                )
            )
        finished = [(run, record) for key, run in made.items() if (record := records[key])]
        return compare_rows(rows, self._baseline), cost_of(finished)

    def lines(self) -> list[str]:
        """Lines for the terminal: every run with its state, and the estimated time of the rest."""
        wanted = [*self.tuning(), *self.finals()]
        chosen = in_order(list(unique(wanted).values()))
        states = Counter(run.state for run in chosen)
        later = [
            f"  later     {row.name}, {len(self.experiment.seeds)} runs, as soon as its settings are chosen"
            for row in self.undecided()
        ]
        same = len(wanted) - len(chosen)
        return [
            *(f"  {run.state:<8}  {run.folder}" for run in chosen),
            *later,
            f"{len(self.rows)} rows x {len(self.experiment.seeds)} seeds: {states['finished']} runs are finished, "
            f"{states['started']} begun, {states['new']} new"
            + (f"; {same} more are the same as one of these" if same else ""),
            _estimate(chosen),
        ]

    def _selected(self) -> Iterator[Row]:
        return (row for row in self.rows if row.name in self.selected)

    def _final(self, row: Row) -> dict[int, PlannedRun]:
        """Final runs of a row by seed; none until its settings are chosen."""
        tried = {}
        if self.tries[row.name]:
            if row.name not in self.choices:
                return {}
            tried = row.search[self.choices[row.name].chosen]
        return {seed: self._planner.run(row, seed, tried) for seed in self.experiment.seeds}


def _estimate(wanted: Sequence[PlannedRun]) -> str:
    """Estimate the time left from finished runs: of the same row, else of the same method, else of all."""
    seconds: dict[str, list[float]] = {}
    left = []
    for run in wanted:
        record = run.record()
        names = (str(run.folder.parent), run.method, "")
        if record is None:
            left.append(names)
            continue
        for name in names:
            seconds.setdefault(name, []).append(record["seconds"])
    if not left:
        return "nothing is left to do"
    if not seconds:
        return f"{len(left)} runs to do; how long they take is known when the first is finished"
    known = [next(seconds[name] for name in names if name in seconds) for names in left]
    total = sum(statistics.fmean(values) for values in known)
    return f"{len(left)} runs to do, about {total / 60:.1f} min one after another"
