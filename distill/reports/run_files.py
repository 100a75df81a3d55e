"""Read the folder of a finished run."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from distill.evaluation import predictions
from distill.evaluation.predictions import Predictions
from distill.measures import score
from distill.measures.score import Measure
from distill.student.files import read_config
from distill.training.run_record import read_file, read_record
from featstore.errors import ConfigError

REPORT = "report"
"""Folder inside a run's folder (and inside OUT) with the data of the page as CSV and JSON."""
HARDEST, TYPICAL, FEATURE_MAP = "hardest.csv", "typical.csv", "feature_map.csv"
EXTRACTION = "extraction.json"
"""Files there that are written at the end of the run; all others are written with every page."""

BASELINE = "labels"  # method that others are compared with: cross entropy on the labels alone

IMAGES = ("labelled", "unlabelled", "test", "labels_per_class", "label_seed", "validation")
"""Data settings that decide which images and labels a run gets."""

Row = dict[str, Any]


@dataclass(frozen=True)
class ReportedRun:
    """One finished run."""

    folder: Path  # folder of the run
    name: str  # METHOD or METHOD+PARTNER, with the folders above it where runs lie deeper in OUT
    record: dict[str, Any]  # content of run.json
    evaluation: dict[str, Any]  # content of evaluation.json

    @property
    def method(self) -> str:
        """METHOD or METHOD+PARTNER."""
        return str(self.record["method"])

    @property
    def seed(self) -> int:
        return int(self.record["seed"])

    @property
    def part(self) -> str:
        """Part of the images that was measured: test, validation or held-out."""
        return score.part_of(self.record)

    @property
    def contract(self) -> dict[str, Any]:
        """All settings that decide the result."""
        values: dict[str, Any] = self.record.get("contract", {})
        return values

    @property
    def score(self) -> Measure:
        """The measure that the run is judged by."""
        return score.score_of(self.record)[0]

    @property
    def value(self) -> float:
        return score.score_of(self.record)[1]

    @property
    def measures(self) -> dict[str, tuple[Measure, float]]:
        """All measures by name, the score first."""
        return {measure.name: (measure, value) for measure, value in score.measures_of(self.record)}

    @property
    def reference(self) -> tuple[str, float] | None:
        """Label and value that the score is compared with, e.g. a linear probe on the teacher's features."""
        return score.reference_of(self.record)

    @property
    def source_name(self) -> str:
        """Name of the images: the last part of their path, or the kind of a source without a path."""
        source = self.settings.get("source", {})
        return Path(source.get("path") or source.get("kind", "unknown")).name

    def _read(self, name: str) -> bytes:
        """A file that the run wrote, its checksum compared; empty if it is gone."""
        try:
            return read_file(self.folder, name, self.record)
        except FileNotFoundError:
            return b""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """config.yaml; empty if it is missing."""
        values: dict[str, Any] = yaml.safe_load(self._read("config.yaml")) or {}
        return values

    @cached_property
    def metrics(self) -> list[Row]:
        """Lines of metrics.jsonl."""
        return [json.loads(line) for line in self._read("metrics.jsonl").splitlines()]

    @cached_property
    def exported(self) -> dict[str, Any]:
        """config.json beside the student; empty if it is missing."""
        return read_config(self.folder) or {}

    @cached_property
    def predictions(self) -> Predictions | None:
        """Answers to every test image."""
        self._read(predictions.NAME)
        return predictions.read_predictions(self.folder)

    @cached_property
    def hardest(self) -> list[Row]:
        """Rows of ``page_data.write_pictures``: the images with the largest loss."""
        return read_csv(self.folder / REPORT / HARDEST)

    @cached_property
    def typical(self) -> list[Row]:
        """Rows of ``page_data.write_pictures``: images at random, of tasks that draw; empty otherwise."""
        return read_csv(self.folder / REPORT / TYPICAL)

    @cached_property
    def feature_map(self) -> list[Row]:
        """Rows of ``page_data.write_feature_map``."""
        return read_csv(self.folder / REPORT / FEATURE_MAP)

    @cached_property
    def extraction(self) -> dict[str, Any]:
        """Content of extraction.json; empty if it is missing."""
        path = self.folder / REPORT / EXTRACTION
        values: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return values


def read_run(folder: Path, out: Path | None = None) -> ReportedRun:
    """Read the folder of a finished run.

    Args:
        out: OUT folder above it, which the name is relative to; None takes the method's name.
    """
    try:
        record = read_record(folder)
        if record is None:
            raise ConfigError("run.json is missing")
        evaluation = json.loads(read_file(folder, "evaluation.json", record))
        parts = () if out is None else folder.parent.relative_to(out).parts
        # The folder of an experiment's row that is named after its method is METHOD/METHOD.
        name = "/".join(part for place, part in enumerate(parts) if part not in parts[:place])
        if "score" not in record:  # written by a version that recorded top1 only
            record = score.classification_record(evaluation) | record
        run = ReportedRun(folder, name or record["method"], record, evaluation)
        _ = run.seed, run.measures, run.reference, run.part
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{folder}: not the folder of a finished run ({type(error).__name__}: {error}). Expected run.json and "
            "evaluation.json as `distill` writes them."
        ) from error
    return run


def find_runs(out: Path, setting: str = "--out") -> list[ReportedRun]:
    """All finished runs below a folder, by path.

    Runs on a validation part, made to choose settings, are returned only if there are no others.
    """
    runs = [read_run(mark.parent, out) for mark in sorted(out.rglob("seed*/run.json"))]
    if not runs:
        raise ConfigError(
            f"{setting} {out}: holds no finished run. Expected METHOD/seedK/run.json, as `distill` writes it."
        )
    return [run for run in runs if run.part != "validation"] or runs


def conditions(run: ReportedRun) -> str:
    """What two runs must share to be compared as a pair: seed, images, labels, and the student's architecture."""
    data = run.contract.get("data", {})
    parts = {key: data.get(key) for key in IMAGES}
    student = run.contract.get("student", {}).get("name")
    return json.dumps([run.seed, run.contract.get("source"), parts, student], sort_keys=True)


def find_baseline(run: ReportedRun, runs: Sequence[ReportedRun]) -> ReportedRun | None:
    """The best run of the baseline under the same conditions; None if there is none other."""
    found = [
        other
        for other in runs
        if other.method == BASELINE
        and other.folder != run.folder
        and other.score == run.score
        and conditions(other) == conditions(run)
    ]
    return max(found, key=lambda other: other.score.rank(other.value), default=None)


def read_csv(path: Path) -> list[Row]:
    """Rows of a CSV file with a header; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
