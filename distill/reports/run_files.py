"""A run's folder, read back: what the loop wrote, and what was kept for its page."""

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
from distill.student.files import read_config
from distill.training.run_record import read_file, read_record
from featstore.errors import ConfigError

REPORT = "report"
"""Folder inside a run's folder (and inside OUT): everything on the page as CSV and JSON."""
HARDEST, FEATURE_MAP, EXTRACTION = "hardest.csv", "feature_map.csv", "extraction.json"
"""Files there that only the end of a run can write; the rest is made anew with every page."""

BASELINE = "labels"
"""Method that others are compared with: cross entropy on the labels alone."""

IMAGES = ("labelled", "unlabelled", "test", "labels_per_class", "label_seed", "validation")
"""Settings of the data that decide which images and labels a run sees."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        folder: where it lies.
        name: METHOD or METHOD+PARTNER, with the folders above it where runs lie deeper in OUT.
        record: run.json.
        evaluation: evaluation.json.
    """

    folder: Path
    name: str
    record: dict[str, Any]
    evaluation: dict[str, Any]

    @property
    def method(self) -> str:
        """METHOD or METHOD+PARTNER."""
        return str(self.record["method"])

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.record["seed"])

    @property
    def top1(self) -> float:
        """Accuracy on what was measured."""
        return float(self.record["top1"])

    def _read(self, name: str) -> bytes:
        """A file that the run wrote, its checksum compared; empty if it is gone."""
        try:
            return read_file(self.folder, name, self.record)
        except FileNotFoundError:
            return b""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """config.yaml; empty if it is gone."""
        values: dict[str, Any] = yaml.safe_load(self._read("config.yaml")) or {}
        return values

    @cached_property
    def metrics(self) -> list[Row]:
        """Lines of metrics.jsonl."""
        return [json.loads(line) for line in self._read("metrics.jsonl").splitlines()]

    @cached_property
    def exported(self) -> dict[str, Any]:
        """config.json beside the student; empty if it is gone."""
        return read_config(self.folder) or {}

    @cached_property
    def predictions(self) -> Predictions | None:
        """Answers to every test image."""
        self._read(predictions.NAME)
        return predictions.read(self.folder)

    @cached_property
    def hardest(self) -> list[Row]:
        """Rows of ``keep.write_hardest``."""
        return read_csv(self.folder / REPORT / HARDEST)

    @cached_property
    def feature_map(self) -> list[Row]:
        """Rows of ``keep.write_feature_map``."""
        return read_csv(self.folder / REPORT / FEATURE_MAP)

    @cached_property
    def extraction(self) -> dict[str, Any]:
        """What ``keep.write_extraction`` wrote."""
        path = self.folder / REPORT / EXTRACTION
        values: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return values


def read_run(folder: Path, out: Path | None = None) -> Run:
    """Read the folder of a finished run.

    Args:
        folder: with run.json and evaluation.json.
        out: the OUT folder above it, for the name; None takes the name that the run gives itself.

    Raises:
        ConfigError: a file is missing or not what it should be.
    """
    try:
        record = read_record(folder)
        if record is None:
            raise ConfigError("run.json is missing")
        evaluation = json.loads(read_file(folder, "evaluation.json", record))
        parts = () if out is None else folder.parent.relative_to(out).parts
        # A row of an experiment that is named after its method lies in METHOD/METHOD.
        name = "/".join(part for place, part in enumerate(parts) if part not in parts[:place])
        run = Run(folder, name or record["method"], record, evaluation)
        assert isinstance(run.seed, int)
        assert isinstance(run.top1, float)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{folder}: not the folder of a finished run ({type(error).__name__}: {error}). Expected run.json and "
            "evaluation.json as pipelines/distill.py writes them."
        ) from error
    return run


def find_runs(out: Path) -> list[Run]:
    """All finished runs below a folder, by path. Those that were measured on a validation part, to choose settings,
    count only where there are no others.

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    runs = [read_run(mark.parent, out) for mark in sorted(out.rglob("seed*/run.json"))]
    if not runs:
        raise ConfigError(
            f"--out {out}: holds no finished run. Expected METHOD/seedK/run.json, as pipelines/distill.py writes it."
        )
    tested = [run for run in runs if measured_part(run) == "test"]
    return tested or runs


def conditions(run: Run) -> str:
    """What two runs must share to be compared as a pair: seed, images, labels, and the student's architecture."""
    contract = run.record.get("contract", {})
    data = contract.get("data", {})
    parts = {key: data.get(key) for key in IMAGES}
    student = contract.get("student", {}).get("name")
    return json.dumps([run.seed, contract.get("source"), parts, student], sort_keys=True)


def find_baseline(run: Run, runs: Sequence[Run], method: str = BASELINE) -> Run | None:
    """The run of a method under the same conditions; of several, the most accurate; None if there is none."""
    found = [
        other for other in runs if other.method == method and conditions(other) == conditions(run)
    ]
    return max(found, key=lambda other: other.top1, default=None)


def measured_part(run: Run) -> str:
    """test or validation."""
    return str(run.record.get("contract", {}).get("eval", {}).get("part", "test"))


def read_csv(path: Path) -> list[Row]:
    """Rows of a CSV file with a header; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
