"""Measured students as text, Markdown, CSV and JSON."""

import dataclasses
from pathlib import Path
from typing import Any

from distill.experiments.cost import ExperimentCost
from distill.experiments.table import cost_lines
from distill.export.latency import noise
from distill.export.numbers import milliseconds
from distill.measures.score import Measure
from distill.reports.tables import write_csv, write_page
from distill.students.measure import MeasuredStudent, StudentComparison
from featstore.display.text import count
from featstore.files.atomic import write_json

NAMES = ("students.json", "students.csv", "students.md")


def student_cells(choice: StudentComparison) -> list[tuple[str, ...]]:
    """Header and rows, the best score first."""
    measure = choice.measure
    timings = choice.students[0].timings
    heads = [
        f"batch {item.batch}, {count(item.threads, 'thread')}: ms median / p95" for item in timings
    ]
    score = measure.label + " %" * measure.percent
    header = ("student", "front", "start", "seeds", score, "parameters, M", "MACs, M", "ONNX MB", *heads,
              "CPU ms", "memory MB", "train s")  # fmt: skip
    rows = [
        (
            student.name,
            on_front(latency, size),
            student.start,
            str(len(student.scores)),
            measure.spread([*student.scores.values()]),
            f"{student.parameters / 1e6:.2f}",
            f"{student.macs / 1e6:.1f}",
            f"{student.bytes / 1e6:.2f}",
            *(
                f"{milliseconds(item.median_ms)} / {milliseconds(item.p95_ms)}"
                for item in student.timings
            ),
            milliseconds(student.latency.cpu_ms),
            "-" if student.model_mb is None else f"{student.model_mb:.0f}",
            f"{student.train_s:.0f}",
        )
        for student, latency, size in zip(
            choice.students, choice.by_latency, choice.by_size, strict=True
        )
    ]
    return [header, *rows]


def on_front(latency: bool, size: bool) -> str:
    """The fronts that a student is on, as text."""
    return " and ".join(name for name, on in (("latency", latency), ("size", size)) if on) or "-"


def spread(student: MeasuredStudent, measure: Measure) -> str:
    """Mean and sample standard deviation over seeds, with the unit."""
    return measure.spread([*student.scores.values()]) + "%" * measure.percent


def student_notes(choice: StudentComparison, cost: ExperimentCost) -> list[str]:
    """Notes below the table: measurement, cost, missing students."""
    timings = [item for student in choice.students for item in student.timings]
    times, ratios = noise(timings)
    machine = choice.machine
    found = [
        f"latency: ONNX Runtime {machine['versions']['onnxruntime']}, float32, all students in turn in one process, "
        f"{choice.rounds} rounds in shuffled order, at least {min(item.calls for item in timings)} calls each; on "
        f"{machine['cpu']}, {machine['architecture']}, {count(machine['cores'], 'core')}, load average "
        f"{machine['load_average_1min']:.1f} before and {machine['load_average_1min_after']:.1f} after.",
        f"noise: the middle 80% of the rounds' medians span {100 * times:.0f}% of the time, those of the ratio of two "
        f"students within a round {100 * ratios:.0f}%. CPU ms: processor time of a call with the first batch size and "
        "number of threads.",
        "front: no other student has at least its score (mean over seeds) and at most as slow (or large). Differences "
        "within the standard deviation over seeds are not significant.",
        *cost_lines(cost),
    ]
    if choice.unfinished:
        found.append(f"left out, without a finished run: {', '.join(choice.unfinished)}.")
    return found


def finding(choice: StudentComparison) -> str:
    """The students on the fronts, in two sentences."""
    fast = sorted(
        (item for item, on in zip(choice.students, choice.by_latency, strict=True) if on),
        key=lambda item: item.latency.median_ms,
    )
    walk = ", ".join(
        f"{item.name} ({spread(item, choice.measure)}, {milliseconds(item.latency.median_ms)} ms)"
        for item in fast
    )
    small = [item.name for item, on in zip(choice.students, choice.by_size, strict=True) if on]
    what = "accuracy" if choice.measure.name == "top1" else choice.measure.label
    return (
        f"On the Pareto front of {what} and latency: {walk}. On that of {what} and size: "
        f"{', '.join(reversed(small))}."
    )


def _older(student: MeasuredStudent, choice: StudentComparison) -> dict[str, Any]:
    """Values of a classifier under the names that they had before 0.3."""
    if choice.measure.name != "top1":
        return {}
    return {"top1": student.scores, "probe_top1": choice.reference and choice.reference[1]}


def write_students_tables(out: Path, choice: StudentComparison, cost: ExperimentCost) -> list[Path]:
    """Write students.json, students.csv and students.md; returns their paths."""
    listed = [
        {
            **dataclasses.asdict(student),
            **_older(student, choice),
            "mean": student.mean,
            "deviation": student.deviation,
            "on_latency_front": latency,
            "on_size_front": size,
        }
        for student, latency, size in zip(
            choice.students, choice.by_latency, choice.by_size, strict=True
        )
    ]
    said = [finding(choice), *student_notes(choice, cost)]
    values: dict[str, Any] = {
        "format_version": 1,
        "measure": dataclasses.asdict(choice.measure),
        "reference": choice.reference,
        "students": listed,
        "machine": choice.machine,
        "rounds": choice.rounds,
        "cost": dataclasses.asdict(cost),
        "notes": said,
    }
    write_json(out / NAMES[0], values)
    table = student_cells(choice)
    head, *rows = table
    write_csv(out / NAMES[1], [dict(zip(head, row, strict=True)) for row in rows])
    write_page(out / NAMES[2], table, said)
    return [out / name for name in NAMES]
