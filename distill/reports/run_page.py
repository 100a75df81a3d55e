"""The page of one run: what it reached, against what, how it got there, and where it fails."""

import base64
from pathlib import Path
from typing import Any, Literal

import yaml

from distill.reports import figures, tables
from distill.reports.run_files import BASELINE, REPORT, Row, Run, measured_part
from distill.reports.text import duration, interval, number, percent, points, size, source_name
from featstore.pages.parts import Block, Gallery, Page, Picture, Plot, Section, Table, Text, Tile

MOST_CLASSES = 30
"""Classes that are shown one by one; of more, those with the largest gains and losses."""
MOST_CELLS = 40
"""Classes of a confusion matrix that is drawn; of more, the most frequent mistakes are listed."""

NAMES = {
    "test_top1": "student, test images",
    "stage1/test_top1": "customised teacher, test images",
    "stage1/train_top1": "customised teacher, labelled images",
    "loss/ce": "cross entropy",
}
"""Logged numbers with a name of their own; others are shown by the last part of theirs."""


def build(run: Run, baseline: Run | None) -> tuple[Page, dict[str, list[Row]]]:
    """Put the page together.

    Args:
        run: which.
        baseline: the run of ``labels`` with the same seed, if there is one.

    Returns:
        The page, and what it shows by name of the CSV file without its suffix.
    """
    shown = {
        "curves": tables.curves(run),
        "per_class": tables.per_class(run, baseline),
        "confusion": tables.confusion(run),
        "reliability": run.evaluation.get("reliability", []),
        "corruptions": tables.corruptions(run),
        "hardest": tables.hardest(run),
        "feature_map": run.feature_map,
        "cost": [tables.cost(run)],
    }
    sections = [
        _learning(shown["curves"]),
        _classes(run, shown["per_class"], shown["confusion"]),
        _trust(run, shown["reliability"], shown["corruptions"]),
        _images(run, shown["hardest"]),
        _map(run),
        _record(run, shown["cost"][0]),
    ]
    page = Page(
        title=f"{run.name}, seed {run.seed}",
        subtitle=_subtitle(run),
        finding=_finding(run, baseline),
        tiles=_tiles(run, baseline, shown["cost"][0]),
        sections=sections,
        files=[
            *(
                "run.json",
                "evaluation.json",
                "metrics.jsonl",
                "predictions.npz",
                f"{REPORT}/report.json",
            ),
            *(f"{REPORT}/{name}.csv" for name, rows in shown.items() if rows),
        ],
    )
    return page, shown


def _subtitle(run: Run) -> str:
    contract = run.record.get("contract", {})
    student = contract.get("student", {}).get("name", run.exported.get("architecture", "student"))
    teachers = run.exported.get("teachers") or [run.exported.get("teacher", {})]
    named = " and ".join(item["name"] for item in teachers if item.get("name"))
    parts = [
        f"Student {student}" + (f", taught by the stored features of {named}" if named else ""),
        f"images: {source_name(run)}",
        ", ".join(
            f"{run.record[key]:,} {word}"
            for key, word in (("num_labelled", "labelled"), ("num_unlabelled", "unlabelled"), ("num_test", "test"))
            if key in run.record
        ),
    ]  # fmt: skip
    return "; ".join(part for part in parts if part) + "."


def _finding(run: Run, baseline: Run | None) -> str:
    count = run.evaluation["num_images"]
    low, high = interval(run.top1, count)
    text = (
        f"{percent(run.top1)} of {count:,} {measured_part(run)} images are classified correctly "
        f"(95 % interval for such images: {percent(low)} to {percent(high)})"
    )
    compared = []
    if baseline is not None and baseline.folder != run.folder:
        compared.append(f"{points(run.top1 - baseline.top1)} against training on the labels alone")
    teacher = run.evaluation.get("teacher")
    if teacher:
        gap = run.top1 - teacher["probe_top1"]
        compared.append(f"{points(gap)} against a linear probe on the teacher's own features")
    return f"{text}: {', '.join(compared)}." if compared else f"{text}."


def _tiles(run: Run, baseline: Run | None, cost: Row) -> list[Tile]:
    values = run.evaluation
    teacher = values.get("teacher", {})
    notes = [f"teacher's probe {percent(teacher['probe_top1'])}"] if teacher else []
    if baseline is not None and baseline.folder != run.folder:
        notes.append(f"labels alone {percent(baseline.top1)}")
    tiles = [Tile("Top-1 accuracy", percent(run.top1), ", ".join(notes))]
    if "balanced_accuracy" in values:
        tiles.append(
            Tile("Mean over classes", percent(values["balanced_accuracy"]), "balanced accuracy")
        )
    if teacher:
        tiles.append(
            Tile("Agreement", percent(teacher["agreement"]), "same answer as the teacher's probe")
        )
    tiles.append(
        Tile(
            "Calibration error",
            percent(values["calibration_error"]),
            "expected gap of confidence and accuracy",
        )
    )
    if "corruptions" in values:
        tiles.append(
            Tile(
                "Under corruption",
                percent(values["corruptions"]["mean_top1"]),
                "mean over kinds and severities",
            )
        )
    note = f"{cost['steps']:,} steps on {cost['device']}"
    if cost["student_bytes"] is not None:
        note += f"; student of {size(cost['student_bytes'])}"
    return [*tiles, Tile("Training", duration(cost["training_seconds"]), note)]


def _learning(rows: list[Row]) -> Section:
    """Every logged number: the loss, accuracies, CKA, norms and the rate by name, anything else by its first word."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        places, values = series.setdefault(row["name"], ([], []))
        places.append(row["step"])
        values.append(row["value"])

    def take(test: Any) -> dict[str, tuple[list[float], list[float]]]:
        return {name: series.pop(name) for name in list(series) if test(name)}

    groups: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("Accuracy during training", take(lambda name: name.endswith("top1")), {"share": True}),
        ("Loss terms, weighted", take(lambda name: name.startswith("loss/")), {"log": True}),
        (
            "CKA over cycles",
            take(lambda name: name.startswith("cka/")),
            {"unit": True, "note": "Linear CKA on a fixed list of images: 1 for features equal up to rotation and "
             "scale. f_t: teacher, P_t(f_t): customised for the student, f_s: student."},
        ),
        (
            "Lengths of features",
            take(lambda name: name.startswith("norm/") and not name.endswith(")/f_s")),
            {"note": "Mean Euclidean norms; a target that grows away from f_s inflates."},
        ),
        ("Learning rate", take(lambda name: name == "lr"), {"legend": False}),
        ("Gradient norm", take(lambda name: name == "grad_norm"), {"log": True, "legend": False}),
    ]  # fmt: skip
    rest: dict[str, dict[str, Any]] = {}
    for name in sorted(series):
        rest.setdefault(name.split("/")[0], {})[name] = series[name]
    groups += [(f"Also logged: {word}", found, {}) for word, found in rest.items()]
    blocks: list[Block] = []
    for title, found, options in groups:
        found = {name: line for name, line in found.items() if len(line[0]) > 1}
        if found:
            lines = {NAMES.get(name, name.split("/", 1)[-1]): line for name, line in found.items()}
            blocks.append(figures.curves(title, lines, **options))
    return Section("Learning", blocks)


def _classes(run: Run, rows: list[Row], confusion: list[Row]) -> Section:
    blocks: list[Block] = []
    lead = ""
    compared = bool(rows) and rows[0]["gain"] is not None and run.method != BASELINE
    if rows:
        # Without a run of its own to compare with, classes go by accuracy.
        ordered = sorted(
            rows, key=lambda row: (-row["gain" if compared else "accuracy"], row["class"])
        )
        if not compared:
            ordered = [{**row, "baseline": None, "gain": None} for row in ordered]
        picked, note = ordered, "From the largest gain to the largest loss." if compared else ""
        if len(ordered) > MOST_CLASSES:
            half = MOST_CLASSES // 2
            picked = ordered[:half] + ordered[-half:]
            note = f"The first and last {half} of {len(ordered)} classes; all are in {REPORT}/per_class.csv."
        if compared:
            gained = sum(row["gain"] > 0 for row in rows)
            lost = sum(row["gain"] < 0 for row in rows)
            lead = f"Against labels alone with the same seed, {gained} of {len(rows)} classes gain and {lost} lose."
        blocks.append(figures.accuracies("Accuracy per class", picked, own=run.name, note=note))
    names = list(run.evaluation["per_class"])
    if confusion and len(names) <= MOST_CELLS:
        blocks.append(_matrix(names, confusion))
    wrong = [row for row in confusion if row["true"] != row["predicted"]][:12]
    if wrong:
        blocks.append(
            Table(
                "Most frequent mistakes",
                ("is", "taken for", "images"),
                [(row["true"], row["predicted"], str(row["images"])) for row in wrong],
                wide=len(names) > MOST_CELLS,
                names=2,
            )
        )
    if confusion and not wrong:
        lead = f"{lead} No image is taken for another class.".strip()
    return Section("Classes", blocks, lead)


def _matrix(names: list[str], confusion: list[Row]) -> Plot:
    counts = {(row["true"], row["predicted"]): row["images"] for row in confusion}
    totals = {name: sum(counts.get((name, other), 0) for other in names) for name in names}
    known = [name for name in names if totals[name]]
    cells = [[counts.get((true, other), 0) / totals[true] for other in names] for true in known]
    texts = [[str(counts.get((true, other), "")) for other in names] for true in known]
    right = sum(counts.get((name, name), 0) for name in names)
    return figures.heatmap(
        "Confusion", cells, known, names, x="student's answer", y="class", texts=texts, square=True,
        note="Numbers are images; the colour is their share of the class.",
        alt=f"Confusion matrix of {len(names)} classes, {right} of {sum(totals.values())} images on the diagonal",
    )  # fmt: skip


def _trust(run: Run, bins: list[Row], corruptions: list[Row]) -> Section:
    values = run.evaluation
    blocks: list[Block] = []
    if bins:
        blocks.append(
            figures.reliability(
                "Calibration",
                bins,
                "On the dotted line, confidence equals accuracy; below it the student is too sure.",
            )
        )
    quality = [
        ("expected calibration error", percent(values.get("calibration_error"))),
        ("the same after temperature scaling", percent(values.get("calibration_error_scaled"))),
        ("temperature", number(values.get("temperature"), 2)),
        ("negative log likelihood (nats)", number(values.get("nll"))),
        ("Brier score (0 to 2)", number(values.get("brier"))),
        ("k-NN on the student's features", percent(values.get("knn_top1"))),
        ("linear probe on the student's features", percent(values.get("linear_probe_top1"))),
    ]
    teacher = values.get("teacher", {})
    if teacher:
        quality += [
            ("KL(teacher || student), nats", number(teacher.get("kl"))),
            ("KL(student || teacher), nats", number(teacher.get("kl_reverse"))),
            ("CKA(f_s, f_t)", number(teacher.get("cka"))),
        ]
    rows = [row for row in quality if row[1] != "-"]
    blocks.append(Table("Further measures", ("measure", "value"), rows, wide=False))
    if "both_right" in teacher:
        parts = {
            "both right": (teacher["both_right"], figures.GREEN),
            "only the student": (teacher["only_student_right"], figures.BLUE),
            "only the teacher": (teacher["only_teacher_right"], figures.ORANGE),
            "neither": (teacher["neither_right"], figures.GREY),
        }
        blocks.append(figures.stacked("Who is right: student and teacher's probe", parts))
    if corruptions:
        kinds = list(dict.fromkeys(row["corruption"] for row in corruptions))
        found = {(row["corruption"], row["severity"]): row["accuracy"] for row in corruptions}
        severities = sorted({severity for _, severity in found})
        cells = [[run.top1] * len(kinds)]
        cells += [[found[kind, severity] for kind in kinds] for severity in severities]
        blocks.append(
            figures.heatmap(
                "Accuracy under corruption, in percent", cells, ["0 (as they are)", *map(str, severities)],
                [kind.replace("_", " ") for kind in kinds], y="severity", wide=True,
                note="After ImageNet-C in kind; lengths scale with the student's input: numbers are not ImageNet-C's.",
            )
        )  # fmt: skip
    return Section("Can it be trusted", blocks)


def _images(run: Run, rows: list[Row]) -> Section:
    pictures = []
    for row in rows:
        lines: list[tuple[str, str, Literal["right", "wrong", ""]]] = [("class", row["class"], "")]
        for who in ("student", "teacher"):
            if who in row:
                outcome: Literal["right", "wrong"] = (
                    "right" if row[who] == row["class"] else "wrong"
                )
                lines.append((who, f"{row[who]} ({percent(row[f'{who}_confidence'], 0)})", outcome))
        pictures.append(Picture(_data_uri(run.folder / REPORT / row["image"]), row["id"], lines))
    if not pictures:
        return Section("Hardest images", [])
    missed = [row for row in rows if row["student"] != row["class"]]
    known = [row for row in missed if row.get("teacher") == row["class"]]
    lead = (
        f"The {len(rows)} images with the largest loss; the student has {len(missed)} of them wrong"
    )
    if "teacher" in rows[0]:
        lead += f", of which the teacher's probe has {len(known)} right"
    return Section(
        "Hardest images", [Gallery("Class, answers and confidence", pictures)], f"{lead}."
    )


def _data_uri(path: Path) -> str:
    if not path.is_file():
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


def _map(run: Run) -> Section:
    rows = run.feature_map
    if not rows:
        return Section("Feature map", [])
    names = {
        "teacher": "Teacher, f_t",
        "customised": "Teacher, customised: P_t(f_t)",
        "student": "Student, f_s",
    }
    classes = list(run.evaluation["per_class"])
    blocks = [
        figures.points(title, rows, space, classes)
        for space, title in names.items()
        if f"{space}_x" in rows[0]
    ]
    return Section(
        "Feature map",
        blocks,
        f"t-SNE of the same {len(rows)} test images in each space, from the same start. Colours are classes, crosses "
        "are images that the student has wrong; point at one for its id. Distances between far groups mean little.",
        columns=3 if len(blocks) > 2 else 2,
    )


def _record(run: Run, cost: Row) -> Section:
    rows = [
        ("training", duration(cost["training_seconds"])),
        ("optimiser steps", f"{cost['steps']:,}"),
        ("processes", str(cost["processes"])),
        ("device", str(cost["device"])),
        ("peak memory", size((cost["peak_memory_mb"] or 0) * 2**20)),
    ]
    if cost["peak_device_memory_mb"]:
        rows.append(("peak device memory", size(cost["peak_device_memory_mb"] * 2**20)))
    if cost["extraction_seconds"] is not None:
        rows += [
            ("teacher's features, paid once for all runs", duration(cost["extraction_seconds"])),
            ("of which the teacher's forward passes", duration(cost["teacher_seconds"])),
        ]
    blocks: list[Block] = [Table("Cost", ("what", "value"), rows)]
    told = [*run.record.get("notes", []), *tables.warnings(run)]
    if told:
        blocks.append(Text("Notes and warnings", "\n".join(told)))
    settings = yaml.safe_dump(run.record.get("contract", {}), sort_keys=False, allow_unicode=True)
    versions = yaml.safe_dump({"versions": run.record.get("versions", {})}, sort_keys=False)
    blocks.append(Text("All settings that decide the result, and versions", settings + versions))
    return Section("Cost and record", blocks)
