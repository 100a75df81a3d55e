"""An experiment's results as text, Markdown, CSV and JSON."""

import dataclasses
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from distill.experiments.cost import ExperimentCost
from distill.experiments.plan import changed_settings
from distill.experiments.results import Images, RowResult
from distill.experiments.spec import Experiment
from distill.measures.advice import advice
from distill.measures.paired_tests import detectable, sign_test
from distill.measures.score import TOP1, Measure, score_of
from distill.reports.tables import write_csv, write_page
from featstore.display.text import format_bytes
from featstore.files.atomic import write_json

COLUMNS = (
    "row", "method", "seed", "state", "measure", "score", "top1", "teacher_probe_top1", "seconds", "steps",
    "num_labelled", "num_unlabelled", "num_test", "peak_memory_mb", "peak_device_memory_mb", "shared", "folder",
    "contract_sha256", "error",
)  # fmt: skip
"""Columns of results.csv, one line per row and seed."""

LEVEL = 0.05  # level of significance of the test over images
WEAK_BELOW = 6
"""With fewer pairs a sign test cannot reach 0.05; the table then states the smallest detectable difference."""


def cells(results: Sequence[RowResult], seeds: Sequence[int], part: str) -> list[tuple[str, ...]]:
    """Header and rows of the table, as text. Accuracies are percent, differences percentage points."""
    measure = _measure(results)
    unit = " %" if measure.percent else ""
    header = ("row", "runs", f"{part} {measure.label}{unit}", "min..max", "difference [95 %]", "p", "p Holm", "better",
              "images", "probe %", "s/run", "MB")  # fmt: skip
    rows = [header, *(_row(result, len(seeds)) for result in results)]
    if not any(result.comparison for result in results):
        rows = [(*row[:4], *row[9:]) for row in rows]
    return rows


def _measure(results: Sequence[RowResult]) -> Measure:
    """The score of the rows that have one."""
    return next((result.measure for result in results if result.records), TOP1)


def _row(result: RowResult, wanted: int) -> tuple[str, ...]:
    count = f"{len(result.records)}/{wanted}" if len(result.records) < wanted else f"{wanted}"
    if not result.records:
        return (result.row.name, count, *["-"] * 10)
    measure, scores = result.measure, result.scores
    probe = result.values("teacher_probe_top1")
    memory = max(result.values("peak_device_memory_mb")) or max(result.values("peak_memory_mb"))
    return (
        result.row.name,
        count,
        measure.spread(scores),
        f"{measure.spread([min(scores)])}..{measure.spread([max(scores)])}",
        *_comparison(result),
        f"{100 * statistics.fmean(probe):.1f}" if probe else "-",
        f"{statistics.fmean(result.values('seconds')):.1f}",
        f"{memory:,.0f}",
    )


def _comparison(result: RowResult) -> tuple[str, ...]:
    found = result.comparison
    if found is None:
        return ("-",) * 5
    test, show = found.test, result.measure.signed
    interval = "" if test.low is None else f" [{show(test.low)}, {show(test.high or 0)}]"
    return (
        f"{show(test.mean)}{interval}",
        "-" if test.p is None else f"{test.p:.3f}",
        "-" if found.p_holm is None else f"{found.p_holm:.3f}",
        f"{test.better}/{test.count}",
        _images(found.images.values()),
    )


def _images(found: Collection[Images]) -> str:
    """Number of seeds in which the row is significantly better over images, and worse."""
    if not found:
        return "-"
    sure = [item.only - item.only_baseline for item in found if item.p < LEVEL]
    return f"{sum(gain > 0 for gain in sure)} up {sum(gain < 0 for gain in sure)} down"


def notes(experiment: Experiment, results: Sequence[RowResult], cost: ExperimentCost) -> list[str]:
    """Notes below the table."""
    found = []
    tests = [result.comparison for result in results if result.comparison]
    if tests:
        unit = "percentage points" if _measure(results).percent else _measure(results).label
        found.append(
            f"difference: {unit} to {experiment.baseline}, paired by seed, positive is better, with the 95 % interval "
            "and the p of a paired t test (- with one seed, or where all differences are equal); p Holm: corrected for "
            f"all {sum(item.test.p is not None for item in tests)} tests; better: seeds in which the row is ahead; "
            f"images: seeds in which its gains or losses over the test images are beyond chance (McNemar, p < {LEVEL})."
        )
        fewest = min(item.test.count for item in tests)
        if fewest < WEAK_BELOW:
            found.append(_weakness(fewest))
    found += _shared(results)
    for result in results:
        if result.choice:
            chosen, measure = result.choice.tries[result.choice.chosen], result.choice.measure
            found.append(
                f"{result.row.name}: {_settings(chosen.settings)} chosen among {len(result.choice.tries)} by "
                f"{measure.label} {measure.text(chosen.mean)} on {result.choice.validation} validation images per "
                f"class, seeds {', '.join(map(str, result.choice.seeds))}."
            )
    found += advice([record for result in results for record in result.records.values()])
    return found + cost_lines(cost)


def _weakness(pairs: int) -> str:
    """The smallest difference that so few pairs can show, as text."""
    if pairs < 2:
        return "one seed shows no spread: nothing can be tested. Give three seeds or more."
    return (
        f"{pairs} pairs are weak evidence: the t test reaches p < 0.05 only where the mean difference is above "
        f"{detectable(pairs):.1f} times the standard deviation of the differences, and a sign test cannot go below "
        f"p = {sign_test(pairs, 0):.2g}."
    )


def _shared(results: Sequence[RowResult]) -> list[str]:
    """Which rows count the same run."""
    rows_of: dict[str, list[str]] = {}
    for result in results:
        for seed in result.shared:
            rows_of.setdefault(result.runs[seed].key, []).append(result.row.name)
    groups = dict.fromkeys(", ".join(dict.fromkeys(names)) for names in rows_of.values())
    return [f"the same settings, trained once for all of these rows: {names}." for names in groups]


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items()) or "no change"


def cost_lines(cost: ExperimentCost) -> list[str]:
    """Cost of the extraction, and of live teachers in every run, as lines."""
    found = []
    for store in cost.stores:
        spent = ", ".join(f"{name} {value:.0f} s" for name, value in store.seconds.items())
        found.append(
            f"teacher, paid once: {store.images:,} images x {store.views} views, "
            f"{sum(store.seconds.values()):.0f} s ({spent or 'no times in the ledger'}), "
            f"{format_bytes(store.bytes)} in {store.path}."
        )
    found.append(f"students trained from it: {cost.runs} runs, {_hours(cost.hours)} in all.")
    if cost.live_hours:
        once = sum(store.seconds.get("teacher", 0.0) for store in cost.stores) / 3600
        found.append(
            f"with a live teacher in every run: {_hours(cost.live_hours)} of teacher more, against {_hours(once)} once "
            f"(estimate: {cost.teacher_images:,} images shown x the ledger's seconds per image and view)."
        )
    return found


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def write_experiment(
    out: Path,
    experiment: Experiment,
    results: Sequence[RowResult],
    cost: ExperimentCost,
    rows: Sequence[tuple[str, ...]],
    said: Sequence[str],
) -> list[Path]:
    """Write results.json, results.csv and table.md; returns their paths."""
    values = {
        "experiment": str(experiment.path),
        "seeds": experiment.seeds,
        "baseline": experiment.baseline,
        "rows": [_as_json(result, experiment) for result in results],
        "cost": dataclasses.asdict(cost),
        "notes": list(said),
    }
    write_json(out / "results.json", values)
    write_csv(
        out / "results.csv", [line for result in results for line in _lines(result, out)], COLUMNS
    )
    write_page(out / "table.md", rows, said)
    return [out / name for name in ("results.json", "results.csv", "table.md")]


def _as_json(result: RowResult, experiment: Experiment) -> dict[str, Any]:
    found = result.comparison
    scores = result.scores
    return {
        "row": result.row.name,
        "variant": result.row.variant,
        "cell": result.row.cell,
        "settings": changed_settings(result.row, experiment),
        "tuned": None if result.choice is None else dataclasses.asdict(result.choice),
        "measure": result.measure.name,
        "mean": statistics.fmean(scores) if scores else None,
        "std": statistics.stdev(scores) if len(scores) > 1 else None,
        "comparison": None if found is None else dataclasses.asdict(found),
        "runs": _lines(result, Path(experiment.out)),
    }


def _lines(result: RowResult, out: Path) -> list[dict[str, Any]]:
    """One line per seed; folders are relative to ``out``."""
    lines = []
    for seed in sorted({*result.runs, *result.failures}):
        line: dict[str, Any] = {"row": result.row.name, "seed": seed, "state": "missing"}
        if seed in result.runs:
            line["folder"] = str(result.runs[seed].folder.relative_to(out))
        if seed in result.records:
            record = result.records[seed]
            line |= {name: record[name] for name in COLUMNS if name in record}
            line["measure"], line["score"] = result.measure.name, score_of(record)[1]
            line |= {"state": "finished", "shared": seed in result.shared}
        elif seed in result.failures:
            line |= {"state": "failed", "error": result.failures[seed].message}
        lines.append(line)
    return lines
