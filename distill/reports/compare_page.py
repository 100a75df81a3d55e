"""Page that compares all runs of an OUT folder: results, paired tests, learning curves, cost."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from distill.measures.score import Measure
from distill.reports import comparison, figures
from distill.reports.comparison import Groups, mean
from distill.reports.run_files import BASELINE, REPORT, ReportedRun, Row
from distill.reports.run_page import MOST_CELLS
from featstore.display import style
from featstore.display.parts import Block, Page, Section, Table, Text, Tile
from featstore.display.text import count, format_bytes, format_seconds

MOST_LINES = 10  # methods in a figure with a line for each; the best ones


def build_compare_page(runs: Sequence[ReportedRun], out: Path) -> tuple[Page, dict[str, list[Row]]]:
    """Build the page.

    Args:
        runs: Finished runs, at least one.
        out: Folder of the page, which links are relative to.

    Returns:
        The page, and its data by name of the CSV file without the suffix.
    """
    groups = comparison.by_name(runs)
    shown = {
        "runs": comparison.runs(groups, out),
        "methods": comparison.methods(groups),
        "paired": comparison.paired(groups),
        "label_efficiency": comparison.label_efficiency(groups),
        "per_class": comparison.per_class(groups),
        "corruptions": comparison.corruptions(groups),
        "cost": comparison.cost(groups),
    }
    several = len(groups) > 1
    page = Page(
        title=f"{len(groups)} methods compared" if several else f"{runs[0].name}, all seeds",
        subtitle=_subtitle(runs, groups),
        finding=_finding(groups, shown["paired"]),
        tiles=_tiles(groups, shown["paired"], shown["cost"]),
        sections=[
            _results(groups, shown["paired"], shown["label_efficiency"]),
            _measures(groups, shown["methods"]),
            _curves(groups),
            _classes(groups, shown["per_class"]),
            _robustness(groups, shown["corruptions"]),
            _cost(groups, shown["cost"]),
            _record(groups, shown["runs"]),
        ],
        files=[
            f"{REPORT}/report.json",
            *(f"{REPORT}/{name}.csv" for name, rows in shown.items() if rows),
        ],
    )
    return page, shown


def _score(groups: Groups) -> Measure:
    return next(iter(groups.values()))[0].score


def _subtitle(runs: Sequence[ReportedRun], groups: Groups) -> str:
    used = comparison.everything(groups)
    seeds = sorted({run.seed for run in used})
    students = sorted({run.contract.get("student", {}).get("name", "?") for run in used})
    counts = sorted(
        {run.evaluation["num_images"] for run in used if "num_images" in run.evaluation}
    )
    text = (
        f"{count(len(used), 'run')}, {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}; student "
        f"{', '.join(students)}; images: {used[0].source_name}"
    )  # fmt: skip
    if counts:
        text += (
            f"; measured on {' or '.join(f'{number:,}' for number in counts)} {used[0].part} images"
        )
    if len(used) < len(runs):
        left = sorted({run.score.label for run in runs} - {_score(groups).label})
        text += f"; {count(len(runs) - len(used), 'run')} judged by {', '.join(left)} left out"
    return f"{text}."


def _finding(groups: Groups, gains: Sequence[Row]) -> str:
    score, best = _score(groups), next(iter(groups))
    values = [run.value for run in groups[best]]
    parts = [
        f"{score.difference(row['gain'])} compared with {row['baseline']} ({_certainty(row)})"
        for row in gains
        if row["name"] == best
    ]
    for label, found in comparison.references(groups).items():
        gap = statistics.fmean(values) - statistics.fmean(found.values())
        parts.append(f"{score.difference(gap)} compared with the {label}")
    reached = f"{score.spread(values).replace('+-', PLUS_MINUS)}{'%' if score.percent else ''}"
    text = f"{best} reaches {reached} {score.label}" + (f": {'; '.join(parts)}." if parts else ".")
    if len(values) == 1:
        text += " This is one seed; with other seeds the order may be different."
    return text


PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


def _certainty(row: Row) -> str:
    if row["p"] is None:
        return "no test"
    if row["seeds"] == 1:
        return f"one seed; McNemar's test over images, p {_p(row['p'])}"
    return f"paired t test over {row['seeds']} seeds, p {_p(row['p'])}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _tiles(groups: Groups, gains: Sequence[Row], costs: Sequence[Row]) -> list[Tile]:
    score, best = _score(groups), next(iter(groups))
    values = [run.value for run in groups[best]]
    note = best
    if len(values) > 1:
        note += f"; deviation {score.text(comparison.deviation(values))} over {len(values)} seeds"
    tiles = [Tile(f"Best {score.label}", score.text(mean(values)), note)]
    for row in gains:
        if row["name"] == best:
            note = "labels alone" if row["against"] == BASELINE else "logits of the teacher's probe"
            value = score.text(mean([run.value for run in groups[row["baseline"]]]))
            tiles.append(Tile(row["baseline"], value, note))
    for label, found in comparison.references(groups).items():
        tiles.append(
            Tile(label[0].upper() + label[1:], score.text(mean([*found.values()])), "on the stored features")
        )  # fmt: skip
    total = sum(row["seconds"] * row["runs"] for row in costs)
    number = sum(row["runs"] for row in costs)
    tiles.append(Tile("Training", format_seconds(total), f"{count(number, 'run')} in total"))
    extraction = comparison.extraction_seconds(groups)
    if extraction is not None:
        tiles.append(Tile("Feature extraction", format_seconds(extraction), "once for all runs"))
    return tiles


def _results(groups: Groups, gains: Sequence[Row], labels: Sequence[Row]) -> Section:
    score, references = _score(groups), comparison.references(groups)
    values = {name: [run.value for run in group] for name, group in groups.items()}
    note = "Diamonds: means; lines: sample standard deviation over seeds; pale points: single runs."
    seeds = sorted({run.seed for run in comparison.everything(groups)})
    by_seed = {name: {run.seed: run.value for run in group} for name, group in groups.items()}
    rows = [
        (
            name,
            str(len(found)),
            score.text(mean([*found.values()])),
            score.text(comparison.deviation([*found.values()])),
            *(score.text(found.get(seed)) for seed in seeds),
        )
        for name, found in (by_seed | references).items()
    ]
    columns = ("method", "runs", "mean", "deviation", *(f"seed {seed}" for seed in seeds))
    lines = {label: [*found.values()] for label, found in references.items()}
    blocks: list[Block] = [
        figures.seeds("All methods", values, lines, score, note),
        Table("Mean, deviation and every seed", columns, rows, marked=0),
    ]
    for method in dict.fromkeys(row["against"] for row in gains):
        own = [row for row in gains if row["against"] == method]
        blocks.append(_paired_table(method, own, score))
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in labels:
        places, shown = series.setdefault(row["method"], ([], []))
        places.append(row["labels_per_class"])
        shown.append(row[score.name])
    if series:
        plot = figures.curves(
            "Label efficiency", series, x="labels per class", share=score.percent, log_x=True, wide=True
        )  # fmt: skip
        blocks.insert(1, plot)
    lead = "" if score.higher_is_better else "Lower is better."
    return Section(score.title, blocks, lead)


def _paired_table(method: str, rows: Sequence[Row], score: Measure) -> Table:
    several = len({row["baseline"] for row in rows}) > 1
    cells = [
        (
            f"{row['name']} against {row['baseline']}" if several else row["name"],
            score.difference(row["gain"]),
            "-"
            if row["low"] is None
            else f"{_plain(score, row['low'])} to {_plain(score, row['high'])}",
            f"{row['seeds_better']} : {row['seeds_worse']}",
            "-" if row["images_won"] is None else f"{row['images_won']:,} : {row['images_lost']:,}",
            _p(row["p"]),
            _p(row["p_holm"]),
        )
        for row in rows
    ]
    head = (
        "method",
        "difference",
        "95% interval",
        "seeds better : worse",
        "images better : worse",
        "p",
        "p, Holm",
    )
    return Table(
        f"Compared with {method}, paired", head, cells,
        "Pairs share the seed: labels, order and initial weights. p: paired t test over seeds; with one seed, "
        "McNemar's exact test over the images, which says nothing about other seeds. Holm: corrected for the number of "
        "rows.",
    )  # fmt: skip


def _plain(score: Measure, value: float) -> str:
    return score.difference(value).removesuffix(" points")


def _measures(groups: Groups, methods: Sequence[Row]) -> Section:
    found = comparison.measures(groups)
    rows = [
        (row["name"], *(measure.text(row[measure.name]) for measure in found)) for row in methods
    ]
    lower = [measure.label for measure in found if not measure.higher_is_better]
    note = "Means over seeds."
    if lower:
        note += f" Lower is better: {', '.join(lower)}."
    if any(measure.name == "calibration_error_scaled" for measure in found):
        note += " Scaled: after temperature scaling."
    columns = ("method", *(measure.label for measure in found))
    return Section("All measures", [Table("Means", columns, rows, note)])


def _curves(groups: Groups) -> Section:
    names = list(groups)[:MOST_LINES]
    colours = {name: style.PALETTE[place] for place, name in enumerate(names)}
    score = _score(groups)
    blocks: list[Block] = []
    wanted: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("Cross entropy on the labels", "loss/ce", {"log": True}),
        (f"{score.title} during training", f"test_{score.name}", {"share": score.percent}),
        ("CKA(f_s, f_t) during training", "cka/f_s,f_t", {"unit": True}),
        ("CKA(f_s, P_t(f_t)) during training", "cka/f_s,P_t(f_t)", {"unit": True}),
        ("CKA(P_t(f_t), f_t) during training", "cka/P_t(f_t),f_t", {"unit": True}),
    )
    for title, key, options in wanted:
        curves = {name: comparison.mean_curve(groups[name], key) for name in names}
        series = {name: curve for name, curve in curves.items() if len(curve[0]) > 1}
        # A curve that only one of several methods has is on that run's own page.
        if len(series) > 1 or (series and len(names) == 1):
            blocks.append(figures.curves(title, series, colours=colours, **options))
    several = any(len(group) > 1 for group in groups.values())
    lead = "Means over seeds" if several else ""
    if len(names) < len(groups):
        lead = f"{lead or 'Curves'} of the best {MOST_LINES} methods"
    return Section("Learning", blocks, lead and f"{lead}.")


def _classes(groups: Groups, rows: Sequence[Row]) -> Section:
    gains = {
        (row["name"], row["class"]): row["gain"]
        for row in rows
        if row["gain"] is not None and groups[row["name"]][0].method != BASELINE
    }
    names = list(dict.fromkeys(name for name, _ in gains))
    classes = list(dict.fromkeys(label for _, label in gains))
    if not names:
        return Section("Classes", [])
    # By the sum over methods: where all of them gain or lose most.
    total = {label: sum(gains.get((name, label), 0.0) for name in names) for label in classes}
    ordered = sorted(classes, key=lambda label: -total[label])
    note = ""
    if len(classes) > MOST_CELLS:
        half = MOST_CELLS // 2
        note = f"The {half} classes with the largest gains and the {half} with the smallest, of {len(classes)}."
        ordered = ordered[:half] + ordered[-half:]
    lead = "Means over the seeds of both methods, in points; gains of small classes vary by chance."
    most = max(map(abs, gains.values()))
    if len(ordered) <= 10 or len(names) > 10:
        cells = [[gains.get((name, label)) for label in ordered] for name in names]
        title = "Gain over labels alone"
        block = figures.heatmap(title, cells, names, ordered, gains=True, note=note, wide=True)
        return Section("Classes", [block], lead)
    # Many classes are readable as rows only: the first half, and the second half beside it.
    half = (len(ordered) + 1) // 2
    blocks = []
    for title, some in (("Largest gains", ordered[:half]), ("Smallest gains", ordered[half:])):
        cells = [[gains.get((name, label)) for name in names] for label in some]
        blocks.append(
            figures.heatmap(f"{title} over labels alone", cells, some, names, gains=True, most=most, note=note)
        )  # fmt: skip
    return Section("Classes", blocks, lead)


def _robustness(groups: Groups, rows: Sequence[Row]) -> Section:
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row["name"], row["corruption"]), []).append(row["accuracy"])
    if not found:
        return Section("Robustness", [])
    names = [name for name in groups if any(key[0] == name for key in found)]
    kinds = list(dict.fromkeys(kind for _, kind in found))
    block = figures.heatmap(
        "Accuracy under corruption, in percent",
        [[mean(found.get((name, kind), [])) for kind in kinds] for name in names],
        names,
        [kind.replace("_", " ") for kind in kinds],
        note="Means over severities 1 to 5 and seeds. Kinds as in ImageNet-C; the values are not comparable with its.",
        wide=True,
    )
    return Section("Robustness", [block])


def _cost(groups: Groups, rows: Sequence[Row]) -> Section:
    devices = any(row["peak_device_memory_mb"] for row in rows)
    cells = [
        (
            row["name"],
            str(row["runs"]),
            format_seconds(row["seconds"]),
            f"{row['steps'] or 0:,}",
            format_bytes(row["peak_memory_mb"] * 2**20),
            *([format_bytes((row["peak_device_memory_mb"] or 0) * 2**20)] if devices else []),
            row["device"],
        )
        for row in rows
    ]
    head = ["method", "runs", "time per run", "steps", "peak memory", "device memory", "device"]
    columns = [name for name in head if devices or name != "device memory"]
    lead = ""
    extraction = comparison.extraction_seconds(groups)
    if extraction is not None:
        total = sum(row["seconds"] * row["runs"] for row in rows)
        lead = (
            f"Feature extraction took {format_seconds(extraction)}, once for all; "
            f"{count(sum(row['runs'] for row in rows), 'run')} took {format_seconds(total)} in total."
        )
    blocks: list[Block] = [Table("Time and memory", columns, cells)]
    if len(rows) > 1:
        score = _score(groups)
        where = [
            (row["name"], row["seconds"], statistics.fmean(run.value for run in groups[row["name"]]))
            for row in rows
        ]  # fmt: skip
        title = f"{score.title} against training time"
        blocks.append(figures.against(title, where, score, x="seconds per run"))
    return Section("Cost", blocks, lead)


def _record(groups: Groups, rows: Sequence[Row]) -> Section:
    score = _score(groups)
    cells = [
        (f"{row['name']}, seed {row['seed']}", score.text(row[score.name]), format_seconds(row["seconds"]))
        for row in rows
    ]  # fmt: skip
    links = [f"{quote(row['folder'])}/report.html" for row in rows]
    blocks: list[Block] = [
        Table("Pages of the runs", ("run", score.label, "time"), cells, links=links)
    ]
    differing = comparison.differing(groups)
    if differing:
        text = "\n".join(f"{key}: {' | '.join(values)}" for key, values in differing.items())
        blocks.append(
            Text("Settings that differ between these runs, besides those of the methods", text)
        )
    return Section("Runs", blocks)
