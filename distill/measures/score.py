"""The numbers that a run records: what they are called, which one it is judged by, and which way is better.

``run.json`` holds ``score``, ``measures`` and ``reference``. Tables, pages and the choice of the best run read only
these, so a task decides what is shown by what it records.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Measure:
    """What a number of a run means."""

    # identifier, e.g. ``top1``. During training the loop logs the score as ``test_<name>``.
    name: str
    label: str  # name in tables and pages, e.g. ``top-1``
    # a share between 0 and 1, shown in percent; its differences are percentage points
    percent: bool = True
    higher_is_better: bool = True  # False for losses and errors

    @property
    def title(self) -> str:
        """The label as a heading."""
        return "Top-1 accuracy" if self.name == "top1" else self.label[:1].upper() + self.label[1:]

    def text(self, value: float | None) -> str:
        """``93.3%`` or ``0.221``; a dash for None."""
        if value is None:
            return "-"
        return f"{100 * value:.1f}%" if self.percent else f"{value:.3f}"

    def spread(self, values: Sequence[float]) -> str:
        """Mean and sample standard deviation without a unit, ``92.5 +- 1.2``; no deviation for a single value."""
        found = [statistics.fmean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
        return " +- ".join(
            f"{100 * value:.1f}" if self.percent else f"{value:.3f}" for value in found
        )

    def signed(self, value: float) -> str:
        """A difference without a unit: ``+1.2`` or ``+0.031``."""
        return f"{100 * value:+.1f}" if self.percent else f"{value:+.3f}"

    def difference(self, value: float) -> str:
        """``+1.2 points`` or ``+0.031``, with a true minus sign."""
        text = self.signed(value) + (" points" if self.percent else "")
        return text.replace("-", MINUS)

    def rank(self, value: float) -> float:
        """Sort key: larger is better."""
        return value if self.higher_is_better else -value


TOP1 = Measure("top1", "top-1")
CLASSIFICATION = (
    TOP1,
    Measure("balanced_accuracy", "mean over classes"),
    Measure("knn_top1", "k-NN"),
    Measure("linear_probe_top1", "linear probe"),
    Measure("teacher.agreement", "agreement with teacher"),
    Measure("teacher.kl", "KL(teacher || student)", percent=False, higher_is_better=False),
    Measure("teacher.cka", "CKA(f_s, f_t)", percent=False),
    Measure("calibration_error", "calibration error", higher_is_better=False),
    Measure("calibration_error_scaled", "calibration error, scaled", higher_is_better=False),
    Measure("nll", "NLL", percent=False, higher_is_better=False),
    Measure("brier", "Brier score", percent=False, higher_is_better=False),
    Measure("corruptions.mean_top1", "top-1 under corruption"),
)
"""Measures of a classifier, the score first. The name is the path in evaluation.json."""
PROBE = "teacher's linear probe"

Record = Mapping[str, Any]  # run.json
AnyRecord = TypeVar("AnyRecord", bound=Record)


def record(
    evaluation: Mapping[str, Any],
    measures: Sequence[Measure],
    reference: tuple[str, float] | None = None,
) -> dict[str, Any]:
    """``score``, ``measures`` and ``reference`` of run.json.

    Args:
        evaluation: the numbers; a point in a measure's name leads into a nested mapping.
        measures: the score first; the others are left out where the evaluation has no number for them.
        reference: label and value of what the score is compared with, e.g. the teacher's own result.
    """
    found = []
    for measure in measures:
        value: Any = evaluation
        for part in measure.name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            found.append(asdict(measure) | {"value": float(value)})
    assert found[0]["name"] == measures[0].name, "the evaluation lacks the score"
    return {
        "score": found[0],
        "measures": found,
        "reference": reference and {"label": reference[0], "value": reference[1]},
    }


def classification_record(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a classifier, compared with a linear probe on the teacher's features."""
    probe = evaluation.get("teacher", {}).get("probe_top1")
    return record(evaluation, CLASSIFICATION, None if probe is None else (PROBE, float(probe)))


def score_of(run: Record) -> tuple[Measure, float]:
    """What a run is judged by, and its value; runs before version 0.2 have only ``top1``."""
    return _read(run["score"]) if "score" in run else (TOP1, float(run["top1"]))


def measures_of(run: Record) -> list[tuple[Measure, float]]:
    """All measures with their values, the score first."""
    return [_read(item) for item in run["measures"]] if "measures" in run else [score_of(run)]


def reference_of(run: Record) -> tuple[str, float] | None:
    """Label and value of what the score is compared with; None if there is nothing."""
    if "score" not in run:
        probe = run.get("teacher_probe_top1")
        return None if probe is None else (PROBE, float(probe))
    found = run.get("reference")
    return None if found is None else (str(found["label"]), float(found["value"]))


def part_of(run: Record) -> str:
    """Part of the images that a run was measured on: test or validation; held-out for a task without labels."""
    contract = run.get("contract", {})
    part = str(contract.get("eval", {}).get("part", "test"))
    return "held-out" if part == "test" and contract.get("task") == "none" else part


def best(runs: Iterable[AnyRecord]) -> AnyRecord:
    """The run with the best score; of equal ones, the first."""

    def rank(run: Record) -> float:
        measure, value = score_of(run)
        return measure.rank(value)

    return max(runs, key=rank)


def _read(item: Mapping[str, Any]) -> tuple[Measure, float]:
    measure = Measure(
        str(item["name"]), str(item["label"]), bool(item["percent"]), bool(item["higher_is_better"])
    )
    return measure, float(item["value"])
