"""The rows of an experiment compared: score by seed, and a paired test against the baseline's row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distill.evaluation import predictions
from distill.experiments.plan import PlannedRun, Row
from distill.experiments.pool import Failure
from distill.experiments.tune import TunedSettings
from distill.measures.paired_tests import PairedTest, holm, mcnemar, paired_test
from distill.measures.score import TOP1, Measure, score_of


@dataclass(frozen=True)
class Images:
    """Two runs of one seed compared image by image."""

    only: int  # test images that only the row's student has right
    only_baseline: int  # that only the baseline's has right
    p: float  # exact test of McNemar


@dataclass(frozen=True)
class RowComparison:
    """Comparison of a row with the baseline's row."""

    baseline: str  # name of that row
    seeds: list[int]  # that both rows have
    test: PairedTest  # over these seeds, on the score; a positive difference is better
    p_holm: float | None = None  # corrected for all comparisons of the table
    # by seed, where both runs left their predictions
    images: dict[int, Images] = field(default_factory=dict)


@dataclass(frozen=True)
class RowResult:
    """One row of the table."""

    row: Row  # what was asked for
    runs: dict[int, PlannedRun]  # by seed
    records: dict[int, dict[str, Any]]  # of the finished runs by seed
    failures: dict[int, Failure]  # by seed
    shared: list[int]  # seeds whose run belongs to another row as well
    choice: TunedSettings | None = None  # what tuning decided, if there was any
    # against the baseline; None for the baseline itself, or without common seeds
    comparison: RowComparison | None = None

    @property
    def measure(self) -> Measure:
        """The score of the finished runs; that of a classifier if there are none."""
        first = next(iter(self.records.values()), None)
        return TOP1 if first is None else score_of(first)[0]

    @property
    def scores(self) -> list[float]:
        """The score of every finished run, in the order of the seeds."""
        return [score_of(self.records[seed])[1] for seed in sorted(self.records)]

    def values(self, name: str) -> list[float]:
        """One number of every finished run that has it, in the order of the seeds."""
        records = [self.records[seed] for seed in sorted(self.records)]
        return [float(record[name]) for record in records if name in record]


def compare_rows(results: Sequence[RowResult], baseline: Mapping[str, str]) -> list[RowResult]:
    """Add to every row its comparison with the baseline's, corrected for their number (Holm).

    Args:
        baseline: name of the row that each is compared to.
    """
    by_name = {result.row.name: result for result in results}
    found = [_against(result, by_name.get(baseline.get(result.row.name, ""))) for result in results]
    corrected = holm([item.test.p if item else None for item in found])
    return [
        replace(result, comparison=item and replace(item, p_holm=p))
        for result, item, p in zip(results, found, corrected, strict=True)
    ]


def _against(result: RowResult, other: RowResult | None) -> RowComparison | None:
    if other is None:
        return None
    seeds = sorted(result.records.keys() & other.records.keys())
    if not seeds or all(result.runs[seed] is other.runs[seed] for seed in seeds):
        return None  # nothing to compare, or one and the same row under two names
    test = paired_test(_ranks(result, seeds), _ranks(other, seeds))
    images = {seed: _images(result.runs[seed], other.runs[seed]) for seed in seeds}
    known = {seed: item for seed, item in images.items() if item is not None}
    return RowComparison(other.row.name, seeds, test, images=known)


def _ranks(result: RowResult, seeds: Sequence[int]) -> list[float]:
    """Scores by seed; of a measure of which less is better, negative."""
    found = [score_of(result.records[seed]) for seed in seeds]
    return [measure.rank(value) for measure, value in found]


def _images(run: PlannedRun, other: PlannedRun) -> Images | None:
    """Compare the two students of one seed image by image; None if they were measured on different images."""
    ours, theirs = (
        predictions.read_predictions(run.folder),
        predictions.read_predictions(other.folder),
    )
    if ours is None or theirs is None or ours.ids.tolist() != theirs.ids.tolist():
        return None
    right, baseline_right = ours.student_class == ours.labels, theirs.student_class == theirs.labels
    return Images(*mcnemar(right, baseline_right))
