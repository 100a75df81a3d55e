"""Runs by name as rows of plain values: means, spread, paired gains, classes, cost. What ``compare_page`` shows."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.measures.paired_tests import holm, mcnemar, paired_test
from distill.reports import tables
from distill.reports.run_files import BASELINE, Row, Run, conditions, find_baseline

COMPETITOR = "kd"
"""The baseline that uses the same stored features in the plainest way: logits of a linear probe."""

SECTIONS = (
    "field", "grid_field", "source", "data", "student", "train", "eval", "store_fingerprint", "teacher_weight",
    "teachers",
)  # fmt: skip
"""Parts of a run's settings that a fair comparison shares."""

Groups = Mapping[str, Sequence[Run]]
"""Runs by name, seeds ascending."""

MEASURES: tuple[tuple[str, str, str], ...] = (
    ("top-1", "top1", "%"),
    ("mean over classes", "balanced_accuracy", "%"),
    ("k-NN", "knn_top1", "%"),
    ("linear probe", "linear_probe_top1", "%"),
    ("agreement with teacher", "teacher.agreement", "%"),
    ("KL(teacher || student)", "teacher.kl", ""),
    ("CKA(f_s, f_t)", "teacher.cka", ""),
    ("calibration error", "calibration_error", "%"),
    ("the same, scaled", "calibration_error_scaled", "%"),
    ("NLL", "nll", ""),
    ("Brier", "brier", ""),
    ("under corruption", "corruptions.mean_top1", "%"),
)
"""Heading, key in evaluation.json, and unit."""


def by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by name, seeds ascending; the name with the highest mean accuracy first."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        groups.setdefault(run.name, []).append(run)

    def rank(name: str) -> tuple[float, str]:
        return -statistics.fmean(run.top1 for run in groups[name]), name

    return {name: groups[name] for name in sorted(groups, key=rank)}


def runs(groups: Groups, out: Path) -> list[Row]:
    """Every run with its folder below ``out``, its measures and its time."""
    return [
        {
            "name": run.name,
            "seed": run.seed,
            "folder": run.folder.relative_to(out).as_posix(),
            **{key: mean(_values([run], key)) for _, key, _ in MEASURES},
            "seconds": run.record["seconds"],
        }
        for group in groups.values()
        for run in group
    ]


def methods(groups: Groups) -> list[Row]:
    """Mean and sample deviation over seeds of every measure, by name."""
    rows = []
    for name, group in groups.items():
        row: Row = {"name": name, "runs": len(group)}
        for _, key, _ in MEASURES:
            values = _values(group, key)
            row |= {key: mean(values), f"{key}_deviation": deviation(values)}
        rows.append(row)
    return rows


def paired(groups: Groups) -> list[Row]:
    """Every name against the best of ``labels`` and the best of ``kd`` under the same conditions.

    Pairs share the seed, see ``folder.conditions``; a single pair is compared image by image.
    """
    rows = []
    for method in (BASELINE, COMPETITOR):
        found = [row for name in groups if (row := _against(groups, name, method)) is not None]
        for row, adjusted in zip(found, holm([row["p"] for row in found]), strict=True):
            row["p_holm"] = adjusted
        rows += found
    return rows


def _against(groups: Groups, name: str, method: str) -> Row | None:
    wanted = {conditions(run): run for run in groups[name]}
    for base, group in groups.items():
        pairs = [(wanted[key], run) for run in group if (key := conditions(run)) in wanted]
        if group[0].method == method and pairs:
            return None if base == name else _compared(name, base, method, pairs)
    return None


def _compared(name: str, base: str, method: str, pairs: Sequence[tuple[Run, Run]]) -> Row:
    found = paired_test([run.top1 for run, _ in pairs], [other.top1 for _, other in pairs])
    won, lost, image_p = _images(pairs)
    return {
        "against": method,
        "baseline": base,
        "name": name,
        "seeds": found.count,
        "gain": found.mean,
        "low": found.low,
        "high": found.high,
        "seeds_better": found.better,
        "seeds_worse": found.worse,
        "images_won": won,
        "images_lost": lost,
        "p": image_p if found.count == 1 else found.p,
    }


def _images(pairs: Sequence[tuple[Run, Run]]) -> tuple[int | None, int | None, float | None]:
    """Images that only one run of a pair has right, over all pairs, and McNemar's p of the first pair."""
    found = []
    for run, other in pairs:
        mine, theirs = run.predictions, other.predictions
        if mine is None or theirs is None or not np.array_equal(mine.ids, theirs.ids):
            return None, None, None
        right, other_right = (answers.student_class == answers.labels for answers in (mine, theirs))
        found.append(mcnemar(right, other_right))
    return sum(item[0] for item in found), sum(item[1] for item in found), found[0][2]


def per_class(groups: Groups) -> list[Row]:
    """Mean accuracy per class and name, and the gain over ``labels`` under the same conditions."""
    everything = [run for group in groups.values() for run in group]
    rows = []
    for name, group in groups.items():
        accuracies: dict[str, list[float]] = {}
        gains: dict[str, list[float]] = {}
        for run in group:
            base = find_baseline(run, everything)
            before = {} if base is None else base.evaluation["per_class"]
            for label, value in run.evaluation["per_class"].items():
                if value is not None:
                    accuracies.setdefault(label, []).append(value)
                    if before.get(label) is not None:
                        gains.setdefault(label, []).append(value - before[label])
        rows += [
            {
                "name": name,
                "class": label,
                "accuracy": mean(values),
                "gain": mean(gains.get(label, [])),
            }
            for label, values in accuracies.items()
        ]
    return rows


def label_efficiency(groups: Groups) -> list[Row]:
    """Mean accuracy by method and number of labels per class; none unless that number varies.

    Of several names with one method and one number of labels, the best counts.
    """
    found: dict[tuple[str, int], list[float]] = {}
    probe: dict[tuple[str, int], list[float]] = {}
    for group in groups.values():  # best first
        count = group[0].record.get("contract", {}).get("data", {}).get("labels_per_class", 0)
        if count:
            found.setdefault((group[0].method, count), [run.top1 for run in group])
            teacher = _values(group, "teacher.probe_top1")
            if teacher:
                probe.setdefault(("teacher's probe", count), teacher)
    if len({count for _, count in found}) < 2:
        return []
    return [
        {
            "method": method,
            "labels_per_class": count,
            "runs": len(values),
            "top1": mean(values),
            "deviation": deviation(values),
        }
        for (method, count), values in sorted((found | probe).items())
    ]


def corruptions(groups: Groups) -> list[Row]:
    """Accuracy of every run by corruption and severity."""
    return [
        {"name": run.name, "seed": run.seed, **row}
        for group in groups.values()
        for run in group
        for row in tables.corruptions(run)
    ]


def cost(groups: Groups) -> list[Row]:
    """Time and memory by name."""
    rows = []
    for name, group in groups.items():
        costs = [tables.cost(run) for run in group]
        seconds = [row["training_seconds"] for row in costs]
        rows.append(
            {
                "name": name,
                "runs": len(group),
                "seconds": mean(seconds),
                "seconds_deviation": deviation(seconds),
                "steps": costs[0]["steps"],
                "peak_memory_mb": max((row["peak_memory_mb"] or 0) for row in costs),
                "peak_device_memory_mb": max((row["peak_device_memory_mb"] or 0) for row in costs)
                or None,
                "student_bytes": costs[0]["student_bytes"],
                "device": costs[0]["device"],
            }
        )
    return rows


def extraction_seconds(groups: Groups) -> float | None:
    """Time that the stores of all runs took, each counted once; None if a run does not know."""
    stores: dict[str, float] = {}
    for group in groups.values():
        for run in group:
            for store in run.extraction.get("stores", []):
                if store["seconds"] is None:
                    return None
                stores[store["fingerprint"]] = sum(store["seconds"].values())
    return sum(stores.values()) if stores else None


def probes(groups: Groups) -> dict[int, float]:
    """Accuracy of the teacher's probe by seed."""
    found = {
        run.seed: float(run.evaluation["teacher"]["probe_top1"])
        for group in groups.values()
        for run in group
        if "teacher" in run.evaluation
    }
    return dict(sorted(found.items()))


def mean_curve(group: Sequence[Run], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a logged number, averaged where all runs of a name have it."""
    lines = [
        {line["step"]: line[key] for line in run.metrics if line.get(key) is not None}
        for run in group
    ]
    steps = sorted(set.intersection(*(set(line) for line in lines)))
    means = [statistics.fmean(line[step] for line in lines) for step in steps]
    return [float(step) for step in steps], means


def differing(groups: Groups) -> dict[str, list[str]]:
    """Shared settings with more than one value among the runs."""
    found: dict[str, list[str]] = {}
    for group in groups.values():
        for run in group:
            for section in SECTIONS:
                _collect(section, run.record.get("contract", {}).get(section), found)
    return {key: values for key, values in found.items() if len(values) > 1}


def _collect(key: str, value: Any, found: dict[str, list[str]]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _collect(f"{key}.{name}", item, found)
    elif str(value) not in found.setdefault(key, []):
        found[key].append(str(value))


def _values(group: Sequence[Run], key: str) -> list[float]:
    """One measure of every run of a name that has it."""
    found = []
    for run in group:
        value: Any = run.evaluation
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            found.append(float(value))
    return found


def mean(values: Sequence[float]) -> float | None:
    """None for no values."""
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None
