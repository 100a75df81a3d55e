"""One run as rows of plain values: the data of every figure, and the CSV and JSON beside a page."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.reports.run_files import ReportedRun, Row
from featstore.display.text import markdown_table
from featstore.files.atomic import write_bytes

NOT_SERIES = {"step", "epoch", "warning"}
HARDEST_COLUMNS = ("rank", "place", "id", "image", "loss", "drawn")


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    """Write rows with a header, of these columns or those of the first row; without rows no file is written."""
    if not rows:
        return
    text = io.StringIO()
    names = columns or list(rows[0])
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def write_page(path: Path, cells: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    """Write a table, its header first, and notes below it as Markdown."""
    lines = [*markdown_table(cells[0], cells[1:]), "", *(f"- {line}" for line in notes), ""]
    write_bytes(path, "\n".join(lines).encode())


def curves(run: ReportedRun) -> list[Row]:
    """Every finite number of metrics.jsonl: step, epoch, name, value."""
    return [
        {"step": line["step"], "epoch": line["epoch"], "name": name, "value": value}
        for line in run.metrics
        for name, value in line.items()
        if name not in NOT_SERIES and isinstance(value, int | float) and math.isfinite(float(value))
    ]


def warnings(run: ReportedRun) -> list[str]:
    """Warnings of the training loop, each text once."""
    return list(dict.fromkeys(line["warning"] for line in run.metrics if "warning" in line))


def per_class(run: ReportedRun, baseline: ReportedRun | None) -> list[Row]:
    """Accuracy of every class that has test images, with the teacher's and a baseline's."""
    answers = run.predictions
    before = {} if baseline is None else baseline.evaluation.get("per_class", {})
    rows = []
    for number, (name, value) in enumerate(run.evaluation.get("per_class", {}).items()):
        if value is None:
            continue
        row: Row = {"class": name, "accuracy": value, "images": None, "teacher": None}
        if answers is not None:
            own = answers.labels == number
            row["images"] = int(own.sum())
            if answers.teacher_class is not None:
                row["teacher"] = float((answers.teacher_class[own] == number).mean())
        row["baseline"] = before.get(name)
        row["gain"] = None if row["baseline"] is None else value - row["baseline"]
        rows.append(row)
    return rows


def confusion(run: ReportedRun) -> list[Row]:
    """Counts by true and predicted class, most frequent mistakes first; pairs that never occur are left out."""
    rows = [
        {"true": true, "predicted": predicted, "images": count}
        for true, counts in run.evaluation.get("confusion", {}).items()
        for predicted, count in counts.items()
    ]
    return sorted(rows, key=lambda row: (row["true"] == row["predicted"], -row["images"]))


def corruptions(run: ReportedRun) -> list[Row]:
    """Accuracy by corruption and severity."""
    found = run.evaluation.get("corruptions", {}).get("top1", {})
    return [
        {"corruption": kind, "severity": number, "accuracy": value}
        for kind, values in found.items()
        for number, value in enumerate(values, start=1)
    ]


def pictures(run: ReportedRun, kept_rows: list[Row]) -> list[Row]:
    """Rows of hardest.csv or typical.csv, with answers and confidences of student and teacher's probe where known."""
    answers = run.predictions
    rows = []
    for kept in kept_rows:
        place = int(kept["place"])
        row: Row = {key: kept[key] for key in HARDEST_COLUMNS if key in kept}
        rows.append(row)
        if answers is None:
            continue
        row["class"] = str(answers.class_names[answers.labels[place]])
        for who, logits, chosen in (
            ("student", answers.student, answers.student_class),
            ("teacher", answers.teacher, answers.teacher_class),
        ):
            if logits is not None and chosen is not None:
                row[who] = str(answers.class_names[chosen[place]])
                row[f"{who}_confidence"] = round(_confidence(logits[place].astype(float)), 4)
    return rows


def _confidence(logits: Any) -> float:
    shifted = [math.exp(value - max(logits)) for value in logits]
    return max(shifted) / sum(shifted)


def cost(run: ReportedRun) -> Row:
    """Time and memory of a run, and the time of the extraction of its features."""
    seconds = [store["seconds"] for store in run.extraction.get("stores", [])]
    known = bool(seconds) and None not in seconds
    total = round(sum(sum(item.values()) for item in seconds), 1) if known else None
    teacher = round(sum(item.get("teacher", 0.0) for item in seconds), 1) if known else None
    record = run.record
    student = run.folder / "student.safetensors"
    return {
        "training_seconds": record["seconds"],
        "steps": record.get("steps"),
        "processes": record.get("num_processes", 1),
        "device": record.get("device", ""),
        "peak_memory_mb": record.get("peak_memory_mb"),
        "peak_device_memory_mb": record.get("peak_device_memory_mb") or None,
        "extraction_seconds": total,
        "teacher_seconds": teacher,
        "student_bytes": student.stat().st_size if student.exists() else None,
    }
