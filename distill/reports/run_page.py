"""Page of one run: its result, comparisons, learning curves, errors and cost."""

import base64
from typing import Any, Literal

import yaml

from distill.measures.score import TOP1
from distill.reports import figures, tables
from distill.reports.run_files import BASELINE, REPORT, ReportedRun, Row
from featstore.display import style
from featstore.display.parts import Block, Gallery, Page, Picture, Plot, Section, Table, Text, Tile
from featstore.display.text import count, format_bytes, format_seconds

MOST_CLASSES = 30
"""Classes that are shown one by one; of more, those with the largest gains and losses."""
MOST_CELLS = 40
"""Classes of a confusion matrix that is drawn; of more, only the most frequent mistakes are listed."""
KEY_MEASURES = {
    "balanced_accuracy": "balanced accuracy",
    "teacher.agreement": "same answer as the teacher's probe",
    "calibration_error": "expected gap between confidence and accuracy",
    "corruptions.mean_top1": "mean over kinds and severities",
}
"""Measures of a classifier that get a tile, with its note."""
MOST_TILES = 4

NAMES = {
    "stage1/test_top1": "customised teacher, test images",
    "stage1/train_top1": "customised teacher, labelled images",
    "loss/ce": "cross entropy",
}
"""Names of logged numbers; others are shown by the last part of their key."""
TITLES = {
    "norm": "Ratio of feature norms",
    "stage1": "Stage 1",
    "variance": "Variance of features",
    "test": "Measures during training",
}
"""Titles of figures of further logged numbers, by the first word of their key."""


def build_run_page(
    run: ReportedRun, baseline: ReportedRun | None
) -> tuple[Page, dict[str, list[Row]]]:
    """Build the page.

    Args:
        baseline: Run of ``labels`` with the same seed, if there is one.

    Returns:
        The page, and its data by name of the CSV file without the suffix.
    """
    shown = {
        "curves": tables.curves(run),
        "per_class": tables.per_class(run, baseline),
        "confusion": tables.confusion(run),
        "reliability": run.evaluation.get("reliability", []),
        "corruptions": tables.corruptions(run),
        "hardest": tables.pictures(run, run.hardest),
        "typical": tables.pictures(run, run.typical),
        "feature_map": run.feature_map,
        "cost": [tables.cost(run)],
    }
    page = Page(
        title=f"{run.name}, seed {run.seed}",
        subtitle=_subtitle(run),
        finding=_finding(run, baseline),
        tiles=_tiles(run, baseline, shown["cost"][0]),
        sections=[
            _learning(run, shown["curves"]),
            _classes(run, shown["per_class"], shown["confusion"]),
            _measures(run, shown["reliability"], shown["corruptions"]),
            _images(run, shown["hardest"]),
            *([_typical(run, shown["typical"])] if run.typical else []),
            _map(run),
            _record(run, shown["cost"][0]),
        ],
        files=[
            "run.json",
            "evaluation.json",
            "metrics.jsonl",
            *(["predictions.npz"] if run.predictions is not None else []),
            f"{REPORT}/report.json",
            *(f"{REPORT}/{name}.csv" for name, rows in shown.items() if rows),
        ],
    )
    return page, shown


def _subtitle(run: ReportedRun) -> str:
    fallback = run.exported.get("architecture", "student")
    student = run.contract.get("student", {}).get("name", fallback)
    teachers = run.exported.get("teachers") or [run.exported.get("teacher", {})]
    named = " and ".join(item["name"] for item in teachers if item.get("name"))
    taught = bool(named) and run.record.get("teacher_images", 1) > 0
    counts = [
        f"{run.record[f'num_{word}']:,} {run.part if word == 'test' else word}"
        for word in ("labelled", "unlabelled", "test")
        if run.record.get(f"num_{word}")
    ]
    parts = [
        f"Student {student}, " + (f"distilled from stored features of {named}" if taught else "trained on labels only"),
        f"images: {run.source_name}" + (f" ({', '.join(counts)})" if counts else ""),
    ]  # fmt: skip
    return "; ".join(parts) + "."


def _finding(run: ReportedRun, baseline: ReportedRun | None) -> str:
    images = run.evaluation.get("num_images")
    if run.score == TOP1 and images:
        low, high = interval(run.value, images)
        text = (
            f"{TOP1.text(run.value)} of {images:,} {run.part} images are classified correctly (95% confidence "
            f"interval: {TOP1.text(low)} to {TOP1.text(high)})"
        )
    else:
        where = f" on {images:,} {run.part} images" if images else ""
        text = f"{run.score.label}: {run.score.text(run.value)}{where}"
    compared = []
    if baseline is not None:
        gain = run.score.difference(run.value - baseline.value)
        compared.append(f"{gain} compared with training on the labels alone")
    if run.reference is not None:
        label, value = run.reference
        compared.append(f"{run.score.difference(run.value - value)} compared with the {label}")
    return f"{text}: {'; '.join(compared)}." if compared else f"{text}."


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count`` images."""
    from scipy.stats import binomtest

    found = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _tiles(run: ReportedRun, baseline: ReportedRun | None, cost: Row) -> list[Tile]:
    notes = []
    if run.reference is not None:
        notes.append(f"{run.reference[0]} {run.score.text(run.reference[1])}")
    if baseline is not None:
        notes.append(f"labels alone {run.score.text(baseline.value)}")
    tiles = [Tile(run.score.title, run.score.text(run.value), ", ".join(notes))]
    others = [item for name, item in run.measures.items() if name != run.score.name]
    chosen = [item for item in others if item[0].name in KEY_MEASURES] or others
    for measure, value in chosen[:MOST_TILES]:
        tiles.append(Tile(measure.title, measure.text(value), KEY_MEASURES.get(measure.name, "")))
    note = f"{count(cost['steps'] or 0, 'step')} on {cost['device']}"
    if cost["student_bytes"] is not None:
        note += f"; student of {format_bytes(cost['student_bytes'])}"
    return [*tiles, Tile("Training", format_seconds(cost["training_seconds"]), note)]


def _learning(run: ReportedRun, rows: list[Row]) -> Section:
    """Every logged number: known ones by name, others by the first word of their key."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        places, values = series.setdefault(row["name"], ([], []))
        places.append(row["step"])
        values.append(row["value"])
    key, end, note = f"test_{run.score.name}", run.record.get("steps"), ""
    places, values = series.setdefault(key, ([], []))
    if not places:
        note = "The student was measured at the end only; --eval.every 1 measures it after every epoch."
    if end is not None and end not in places:
        places.append(end)
        values.append(run.value)

    def take(test: Any) -> dict[str, tuple[list[float], list[float]]]:
        return {name: series.pop(name) for name in list(series) if test(name)}

    title = "Accuracy" if run.score == TOP1 else run.score.title
    groups: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (
            f"{title} during training",
            take(lambda name: name == key or (run.score == TOP1 and name.endswith("top1"))),
            {"share": run.score.percent, "note": note},
        ),
        ("Loss terms, weighted", take(lambda name: name.startswith("loss/")), {"log": True}),
        (
            "CKA during training",
            take(lambda name: name.startswith("cka/")),
            {"unit": True, "note": "Linear CKA on a fixed list of images: 1 for features that are equal up to rotation "
             "and scale. f_t: teacher, P_t(f_t): teacher customised for the student, f_s: student."},
        ),
        (
            "Feature norms",
            take(lambda name: name.startswith("norm/") and not name.endswith(")/f_s")),
            {"note": "Mean Euclidean norms. A norm of P_t(f_t) that keeps growing means an inflating target."},
        ),
        ("Learning rate", take(lambda name: name == "lr"), {}),
        ("Gradient norm", take(lambda name: name == "grad_norm"), {"log": True}),
    ]  # fmt: skip
    rest: dict[str, dict[str, Any]] = {}
    for name in sorted(series):
        word = "test" if name.startswith("test_") else name.split("/")[0]
        rest.setdefault(word, {})[name] = series[name]
    groups += [(TITLES.get(word, word), found, {}) for word, found in rest.items()]
    names = {key: f"student, {run.part} images", **NAMES}
    blocks: list[Block] = []
    for title, found, options in groups:
        found = {
            name: line for name, line in found.items() if len(line[0]) > 1 or (name == key and line[0])
        }  # fmt: skip
        if any(len(line[0]) > 1 for line in found.values()):
            lines = {names.get(name, name.split("/", 1)[-1]): line for name, line in found.items()}
            blocks.append(figures.curves(title, lines, **options))
    return Section("Learning", blocks)


def _classes(run: ReportedRun, rows: list[Row], confusion: list[Row]) -> Section:
    blocks: list[Block] = []
    lead = ""
    compared = bool(rows) and rows[0]["gain"] is not None and run.method != BASELINE
    if rows:
        key = "gain" if compared else "accuracy"
        ordered = sorted(rows, key=lambda row: (-row[key], row["class"]))
        if not compared:
            ordered = [{**row, "baseline": None, "gain": None} for row in ordered]
        picked, note = ordered, "From the largest gain to the largest loss." if compared else ""
        if len(ordered) > MOST_CLASSES:
            half = MOST_CLASSES // 2
            picked = ordered[:half] + ordered[-half:]
            note = f"The first and last {half} of {len(ordered)} classes by {key}; all are in {REPORT}/per_class.csv."
        if compared:
            gained = sum(row["gain"] > 0 for row in rows)
            lost = sum(row["gain"] < 0 for row in rows)
            lead = (
                f"Compared with labels alone and the same seed, {gained} of {count(len(rows), 'class')} gain and "
                f"{lost} lose."
            )
        blocks.append(figures.accuracies("Accuracy per class", picked, own=run.name, note=note))
    names = list(run.evaluation.get("per_class", {}))
    drawn = bool(confusion) and len(names) <= MOST_CELLS
    if drawn:
        blocks.append(_matrix(names, confusion))
    wrong = [row for row in confusion if row["true"] != row["predicted"]][:12]
    if wrong:
        cells = [(row["true"], row["predicted"], str(row["images"])) for row in wrong]
        head = ("class", "student's answer", "images")
        wide = not drawn or len(names) > 20
        blocks.append(Table("Most frequent mistakes", head, cells, wide=wide, names=2))
    elif confusion:
        lead = f"{lead} No image is classified wrongly.".strip()
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
        note="Numbers are images; the colour is their share of the class.", wide=len(names) > 20,
        alt=f"Confusion matrix of {len(names)} classes, {right} of {sum(totals.values())} images on the diagonal",
    )  # fmt: skip


def _measures(run: ReportedRun, bins: list[Row], corruptions: list[Row]) -> Section:
    blocks: list[Block] = []
    if bins:
        note = "On the dotted line, confidence equals accuracy; below it, the student is overconfident."
        blocks.append(figures.reliability("Calibration", bins, note))
    rows = [
        (measure.label, measure.text(value), "" if measure.higher_is_better else "lower is better")
        for measure, value in run.measures.values()
    ]
    temperature = run.evaluation.get("temperature")
    note = f"Scaled: after temperature scaling, T = {temperature:.2f}." if temperature else ""
    blocks.append(Table("All measures", ("measure", "value", ""), rows, note, wide=not bins))
    teacher = run.evaluation.get("teacher", {})
    if "both_right" in teacher:
        parts = {
            "both": (teacher["both_right"], style.GREEN),
            "only the student": (teacher["only_student_right"], style.BLUE),
            "only the teacher's probe": (teacher["only_teacher_right"], style.ORANGE),
            "neither": (teacher["neither_right"], style.GREY),
        }
        blocks.append(figures.stacked("Correct answers of student and teacher's probe", parts))
    if corruptions:
        kinds = list(dict.fromkeys(row["corruption"] for row in corruptions))
        found = {(row["corruption"], row["severity"]): row["accuracy"] for row in corruptions}
        severities = sorted({severity for _, severity in found})
        cells = [[run.value] * len(kinds)]
        cells += [[found[kind, severity] for kind in kinds] for severity in severities]
        blocks.append(
            figures.heatmap(
                "Accuracy under corruption, in percent", cells, ["0 (not corrupted)", *map(str, severities)],
                [kind.replace("_", " ") for kind in kinds], y="severity", wide=True,
                note="Kinds as in ImageNet-C, scaled to the student's input size; the values are not comparable with "
                "ImageNet-C's.",
            )
        )  # fmt: skip
    return Section("Measures", blocks)


def _typical(run: ReportedRun, rows: list[Row]) -> Section:
    title = "Target (left) and output of the student (right)"
    lead = f"{count(len(rows), 'image')} of the test part at random, whatever their loss."
    return Section("Typical images", [Gallery(title, _pictures(run, rows))], lead)


def _pictures(run: ReportedRun, rows: list[Row]) -> list[Picture]:
    pictures = []
    for row in rows:
        lines: list[tuple[str, str, Literal["right", "wrong", ""]]] = []
        if "class" in row:
            lines.append(("class", row["class"], ""))
        else:
            lines.append(("loss", f"{float(row['loss']):.3f}", ""))
        for who in ("student", "teacher"):
            if who in row:
                right = row[who] == row["class"]
                answer = f"{row[who]} ({row[f'{who}_confidence']:.0%})"
                lines.append((who, answer, "right" if right else "wrong"))
        path = run.folder / REPORT / row["image"]
        source = ""
        if row["image"] and path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            source = f"data:image/jpeg;base64,{data}"
        pictures.append(Picture(source, row["id"], lines))
    return pictures


def _images(run: ReportedRun, rows: list[Row]) -> Section:
    pictures = _pictures(run, rows)
    if not pictures:
        return Section("Hardest images", [])
    lead = f"The {count(len(rows), 'image')} with the largest loss"
    missed = [row for row in rows if row.get("student") != row.get("class")]
    if "student" in rows[0]:
        lead += f"; the student classifies {len(missed)} of them wrongly"
    if "teacher" in rows[0]:
        known = sum(row["teacher"] == row["class"] for row in missed)
        lead += f", the teacher's probe {known} of these correctly"
    title = "Class, answers and confidence" if "student" in rows[0] else "Images"
    if rows[0].get("drawn"):
        title = "Target (left) and output of the student (right)"
    return Section("Hardest images", [Gallery(title, pictures)], f"{lead}.")


def _map(run: ReportedRun) -> Section:
    rows = run.feature_map
    if not rows:
        return Section("Feature map", [])
    names = {
        "teacher": "Teacher, f_t",
        "customised": "Customised teacher, P_t(f_t)",
        "student": "Student, f_s",
    }
    classes = list(run.evaluation.get("per_class", {}))
    classes = classes or sorted({row.get("class", "") for row in rows} - {""})
    blocks = [
        figures.points(title, rows, space, classes)
        for space, title in names.items()
        if f"{space}_x" in rows[0]
    ]
    lead = f"t-SNE of the same {len(rows):,} {run.part} images in each space, from the same initial positions. "
    if classes:
        lead += "Colours are classes. "
    if "answer" in rows[0]:
        lead += "Crosses are images that the student classifies wrongly. "
    lead += "Hover over a point for its id. Distances between distant groups mean little."
    return Section("Feature map", blocks, lead, columns=3 if len(blocks) > 2 else 2)


def _record(run: ReportedRun, cost: Row) -> Section:
    rows = [
        ("training", format_seconds(cost["training_seconds"])),
        ("optimiser steps", f"{cost['steps'] or 0:,}"),
        ("processes", str(cost["processes"])),
        ("device", str(cost["device"])),
        ("peak memory", format_bytes((cost["peak_memory_mb"] or 0) * 2**20)),
    ]
    if cost["peak_device_memory_mb"]:
        rows.append(("peak device memory", format_bytes(cost["peak_device_memory_mb"] * 2**20)))
    if cost["extraction_seconds"] is not None:
        rows += [
            ("feature extraction, once for all runs", format_seconds(cost["extraction_seconds"])),
            ("of which teacher", format_seconds(cost["teacher_seconds"])),
        ]
    blocks: list[Block] = [Table("Cost", ("", ""), rows)]
    notes = [*run.record.get("notes", []), *tables.warnings(run)]
    if notes:
        blocks.append(Text("Notes and warnings", "\n".join(notes)))
    settings = yaml.safe_dump(run.contract, sort_keys=False, allow_unicode=True)
    versions = yaml.safe_dump({"versions": run.record.get("versions", {})}, sort_keys=False)
    blocks.append(Text("Settings that decide the result, and versions", settings + versions))
    return Section("Cost and settings", blocks)
