"""All runs of an OUT folder as rows of plain values: means, spread, paired gains, classes, cost."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.measures.paired_tests import NO_SPREAD, holm, mcnemar, paired_test
from distill.measures.score import Measure
from distill.reports import tables
from distill.reports.run_files import BASELINE, ReportedRun, Row, conditions, find_baseline

COMPETITOR = "kd"
"""The baseline that uses the same stored features in the simplest way: logits of a linear probe."""

SECTIONS = (
    "field", "grid_field", "source", "data", "student", "train", "eval", "store_fingerprint", "teacher_weight",
    "teachers",
)  # fmt: skip
"""Settings that runs of a fair comparison share."""

Groups = Mapping[str, Sequence[ReportedRun]]
"""Runs by name, seeds ascending, the best name first. All have the same score."""


def by_name(runs: Sequence[ReportedRun]) -> dict[str, list[ReportedRun]]:
    """Group runs by name. Runs that have another score than most of them are left out."""
    names = [run.score.name for run in runs]
    common = max(names, key=names.count)
    groups: dict[str, list[ReportedRun]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.score.name == common:
            groups.setdefault(run.name, []).append(run)

    def rank(name: str) -> tuple[float, str]:
        group = groups[name]
        return -group[0].score.rank(statistics.fmean(run.value for run in group)), name

    return {name: groups[name] for name in sorted(groups, key=rank)}


def everything(groups: Groups) -> list[ReportedRun]:
    """All runs, in the order of the groups."""
    return [run for group in groups.values() for run in group]


def measures(groups: Groups) -> list[Measure]:
    """All measures of any run, the score first."""
    found = {
        measure.name: measure for run in everything(groups) for measure, _ in run.measures.values()
    }
    return list(found.values())


def runs(groups: Groups, out: Path) -> list[Row]:
    """Every run with its folder below ``out``, its measures and its time."""
    return [
        {
            "name": run.name,
            "seed": run.seed,
            "folder": run.folder.relative_to(out).as_posix(),
            **{item.name: mean(_values([run], item.name)) for item in measures(groups)},
            "seconds": run.record["seconds"],
        }
        for run in everything(groups)
    ]


def methods(groups: Groups) -> list[Row]:
    """Mean and sample deviation over seeds of every measure, by name."""
    rows = []
    for name, group in groups.items():
        row: Row = {"name": name, "runs": len(group)}
        for item in measures(groups):
            values = _values(group, item.name)
            row |= {item.name: mean(values), f"{item.name}_deviation": deviation(values)}
        rows.append(row)
    return rows


def paired(groups: Groups) -> list[Row]:
    """Every name against the best of ``labels`` and the best of ``kd`` under the same conditions.

    Pairs share the seed, see ``run_files.conditions``; a single pair is compared image by image.
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


def _compared(
    name: str, base: str, method: str, pairs: Sequence[tuple[ReportedRun, ReportedRun]]
) -> Row:
    score = pairs[0][0].score
    found = paired_test([run.value for run, _ in pairs], [other.value for _, other in pairs])
    ahead = [score.rank(run.value) - score.rank(other.value) for run, other in pairs]
    won, lost, image_p = _images(pairs)
    return {
        "against": method,
        "baseline": base,
        "name": name,
        "seeds": found.count,
        "gain": found.mean,
        "low": found.low,
        "high": found.high,
        "seeds_better": sum(value > NO_SPREAD for value in ahead),
        "seeds_worse": sum(value < -NO_SPREAD for value in ahead),
        "images_won": won,
        "images_lost": lost,
        "p": image_p if found.count == 1 else found.p,
    }


def _images(
    pairs: Sequence[tuple[ReportedRun, ReportedRun]],
) -> tuple[int | None, int | None, float | None]:
    """Images that only one run of a pair classifies correctly, over all pairs, and McNemar's p of the first pair."""
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
    rows = []
    for name, group in groups.items():
        accuracies: dict[str, list[float]] = {}
        gains: dict[str, list[float]] = {}
        for run in group:
            for row in tables.per_class(run, find_baseline(run, everything(groups))):
                accuracies.setdefault(row["class"], []).append(row["accuracy"])
                if row["gain"] is not None:
                    gains.setdefault(row["class"], []).append(row["gain"])
        rows += [
            {"name": name, "class": label, "accuracy": mean(values), "gain": mean(gains.get(label, []))}
            for label, values in accuracies.items()
        ]  # fmt: skip
    return rows


def label_efficiency(groups: Groups) -> list[Row]:
    """Mean score by method and number of labels per class; none unless that number varies.

    Of several names with the same method and number of labels, the best is taken.
    """
    found: dict[tuple[str, int], list[float]] = {}
    references: dict[tuple[str, int], list[float]] = {}
    for group in groups.values():  # best first
        count = group[0].contract.get("data", {}).get("labels_per_class", 0)
        if count:
            found.setdefault((group[0].method, count), [run.value for run in group])
            for run in group:
                if run.reference is not None:
                    references.setdefault((run.reference[0], count), []).append(run.reference[1])
    if len({count for _, count in found}) < 2:
        return []
    return [
        {
            "method": method,
            "labels_per_class": count,
            "runs": len(values),
            groups[next(iter(groups))][0].score.name: mean(values),
            "deviation": deviation(values),
        }
        for (method, count), values in sorted((found | references).items())
    ]


def corruptions(groups: Groups) -> list[Row]:
    """Accuracy of every run by corruption and severity."""
    return [
        {"name": run.name, "seed": run.seed, **row}
        for run in everything(groups)
        for row in tables.corruptions(run)
    ]


def cost(groups: Groups) -> list[Row]:
    """Time and memory by name."""
    rows = []
    for name, group in groups.items():
        costs = [tables.cost(run) for run in group]
        seconds = [row["training_seconds"] for row in costs]
        device = max((row["peak_device_memory_mb"] or 0) for row in costs) or None
        rows.append(
            {
                "name": name,
                "runs": len(group),
                "seconds": mean(seconds),
                "seconds_deviation": deviation(seconds),
                "steps": costs[0]["steps"],
                "peak_memory_mb": max((row["peak_memory_mb"] or 0) for row in costs),
                "peak_device_memory_mb": device,
                "student_bytes": costs[0]["student_bytes"],
                "device": costs[0]["device"],
            }
        )
    return rows


def extraction_seconds(groups: Groups) -> float | None:
    """Time of the extraction of all stores, each counted once; None if a run does not know it."""
    stores: dict[str, float] = {}
    for run in everything(groups):
        for store in run.extraction.get("stores", []):
            if store["seconds"] is None:
                return None
            stores[store["fingerprint"]] = sum(store["seconds"].values())
    return sum(stores.values()) if stores else None


def references(groups: Groups) -> dict[str, dict[int, float]]:
    """What the scores are compared with: values by label and seed."""
    found: dict[str, dict[int, float]] = {}
    for run in sorted(everything(groups), key=lambda run: run.seed):
        if run.reference is not None:
            found.setdefault(run.reference[0], {})[run.seed] = run.reference[1]
    return found


def mean_curve(group: Sequence[ReportedRun], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a logged number, averaged over the steps that all runs of a name have."""
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
    for run in everything(groups):
        for section in SECTIONS:
            _collect(section, run.contract.get(section), found)
    return {key: values for key, values in found.items() if len(values) > 1}


def _collect(key: str, value: Any, found: dict[str, list[str]]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _collect(f"{key}.{name}", item, found)
    elif str(value) not in found.setdefault(key, []):
        found[key].append(str(value))


def _values(group: Sequence[ReportedRun], name: str) -> list[float]:
    """One measure of every run that has it."""
    return [run.measures[name][1] for run in group if name in run.measures]


def mean(values: Sequence[float]) -> float | None:
    """Mean; None for no values."""
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None
