"""The page of all runs of an OUT folder: who is best, by how much, how surely, and at what cost."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from distill.reports import comparison, figures
from distill.reports.comparison import MEASURES, Groups, mean
from distill.reports.run_files import BASELINE, REPORT, Row, Run, measured_part
from distill.reports.run_page import MOST_CELLS
from distill.reports.text import duration, percent, points, size, source_name
from featstore.pages.parts import Block, Page, Section, Table, Text, Tile

MOST_LINES = 10
"""Names in a figure with a line for each; the best ones."""


def build(runs: Sequence[Run], out: Path) -> tuple[Page, dict[str, list[Row]]]:
    """Put the page together.

    Args:
        runs: at least one.
        out: the folder of the page, for links.

    Returns:
        The page, and what it shows by name of the CSV file without its suffix.
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
        subtitle=_subtitle(runs),
        finding=_finding(groups, shown["paired"]),
        tiles=_tiles(groups, shown["paired"], shown["cost"]),
        sections=[
            _accuracy(groups, shown["paired"], shown["label_efficiency"]),
            _quality(shown["methods"]),
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


def _subtitle(runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    contracts = [run.record.get("contract", {}) for run in runs]
    students = sorted({contract.get("student", {}).get("name", "?") for contract in contracts})
    counts = sorted({run.evaluation["num_images"] for run in runs})
    return (
        f"{len(runs)} runs, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; student {', '.join(students)}; "
        f"images: {source_name(runs[0])}; measured on {' or '.join(f'{count:,}' for count in counts)} "
        f"{measured_part(runs[0])} images."
    )


def _finding(groups: Groups, gains: Sequence[Row]) -> str:
    best = next(iter(groups))
    values = [run.top1 for run in groups[best]]
    parts = [
        f"{points(row['gain'])} against {row['baseline']} ({_certainty(row)})"
        for row in gains
        if row["name"] == best
    ]
    probes = list(comparison.probes(groups).values())
    if probes:
        gap = statistics.fmean(values) - statistics.fmean(probes)
        parts.append(f"{points(gap)} against the teacher's own linear probe")
    text = f"{best} reaches {_spread(values)} top-1" + (f": {', '.join(parts)}." if parts else ".")
    if len(values) == 1:
        text += " This is one seed: another draw of labels may turn the order around."
    return text


def _certainty(row: Row) -> str:
    if row["p"] is None:
        return "no test"
    if row["seeds"] == 1:
        return f"one seed; McNemar over images, p {_p(row['p'])}"
    return f"paired t test over {row['seeds']} seeds, p {_p(row['p'])}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return percent(values[0])
    mean = 100 * statistics.fmean(values)
    return f"{mean:.1f} \N{PLUS-MINUS SIGN} {100 * statistics.stdev(values):.1f}\N{NO-BREAK SPACE}%"


def _tiles(groups: Groups, gains: Sequence[Row], costs: Sequence[Row]) -> list[Tile]:
    best = next(iter(groups))
    values = [run.top1 for run in groups[best]]
    spread = f"; deviation {percent(comparison.deviation(values))} over {len(values)} seeds"
    tiles = [Tile("Best", percent(mean(values)), best + spread * (len(values) > 1))]
    for row in gains:
        if row["name"] == best:
            alone = row["against"] == BASELINE
            what = "labels alone" if alone else "logits of the teacher's probe"
            value = percent(mean([run.top1 for run in groups[row["baseline"]]]))
            tiles.append(Tile(row["baseline"], value, what))
    probes = list(comparison.probes(groups).values())
    if probes:
        tiles.append(
            Tile("Teacher's probe", percent(mean(probes)), "linear, on the stored features")
        )
    total = sum(row["seconds"] * row["runs"] for row in costs)
    tiles.append(Tile("All training", duration(total), f"{sum(row['runs'] for row in costs)} runs"))
    extraction = comparison.extraction_seconds(groups)
    if extraction is not None:
        tiles.append(Tile("Teacher", duration(extraction), "features extracted once for all"))
    return tiles


def _accuracy(groups: Groups, gains: Sequence[Row], labels: Sequence[Row]) -> Section:
    probes = comparison.probes(groups)
    accuracies = {name: [run.top1 for run in group] for name, group in groups.items()}
    note = "Diamonds are means, lines the sample standard deviation over seeds, pale points single runs."
    seeds = sorted({run.seed for group in groups.values() for run in group})
    by_seed = {name: {run.seed: run.top1 for run in group} for name, group in groups.items()}
    if probes:
        by_seed["teacher, linear probe"] = probes
    rows = [
        (
            name,
            str(len(found)),
            percent(mean(list(found.values()))),
            percent(comparison.deviation(list(found.values()))),
            *(percent(found.get(seed)) for seed in seeds),
        )
        for name, found in by_seed.items()
    ]
    columns = ("method", "runs", "mean", "deviation", *(f"seed {seed}" for seed in seeds))
    blocks: list[Block] = [
        figures.seeds("All methods", accuracies, list(probes.values()), note),
        Table("Mean, spread and every seed", columns, rows, marked=0),
    ]
    for method in dict.fromkeys(row["against"] for row in gains):
        blocks.append(_paired_table(method, [row for row in gains if row["against"] == method]))
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in labels:
        places, values = series.setdefault(row["method"], ([], []))
        places.append(row["labels_per_class"])
        values.append(row["top1"])
    if series:
        title = "Label efficiency"
        plot = figures.curves(
            title, series, x="labels per class", share=True, log_x=True, wide=True
        )
        blocks.insert(1, plot)
    return Section("Accuracy", blocks)


def _paired_table(method: str, rows: Sequence[Row]) -> Table:
    several = len({row["baseline"] for row in rows}) > 1
    cells = [
        (
            f"{row['name']} against {row['baseline']}" if several else row["name"],
            points(row["gain"]),
            "-" if row["low"] is None else f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
            f"{row['seeds_better']} : {row['seeds_worse']}",
            "-" if row["images_won"] is None else f"{row['images_won']:,} : {row['images_lost']:,}",
            _p(row["p"]),
            _p(row["p_holm"]),
        )
        for row in rows
    ]
    return Table(
        f"Against {method}, paired",
        (
            "method",
            "gain",
            "95 % interval",
            "seeds won : lost",
            "images won : lost",
            "p",
            "p, Holm",
        ),
        cells,
        "Pairs share the seed: labels, order and first weights. p: paired t test over seeds; with one seed, McNemar's "
        "exact test over the images, which says nothing of other seeds. Holm: corrected for the number of rows.",
    )


def _quality(methods: Sequence[Row]) -> Section:
    found = [
        (title, key, unit)
        for title, key, unit in MEASURES
        if any(row[key] is not None for row in methods)
    ]
    rows = [
        (
            row["name"],
            *(
                percent(row[key]) if unit == "%" or row[key] is None else f"{row[key]:.3f}"
                for _, key, unit in found
            ),
        )
        for row in methods
    ]
    note = (
        "Means over seeds. Calibration error, NLL, Brier score and KL: smaller is better. Scaled: after temperature "
        "scaling."
    )
    columns = ("method", *(title for title, _, _ in found))
    return Section("Beyond accuracy", [Table("All measures", columns, rows, note)])


def _curves(groups: Groups) -> Section:
    names = list(groups)[:MOST_LINES]
    colours = {name: figures.PALETTE[place] for place, name in enumerate(names)}
    wanted: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("Cross entropy on the labels", "loss/ce", {"log": True}),
        ("Test accuracy during training", "test_top1", {"share": True}),
        ("CKA(f_s, f_t) over cycles", "cka/f_s,f_t", {"unit": True}),
        ("CKA(f_s, P_t(f_t)) over cycles", "cka/f_s,P_t(f_t)", {"unit": True}),
        ("CKA(P_t(f_t), f_t) over cycles", "cka/P_t(f_t),f_t", {"unit": True}),
    )
    blocks: list[Block] = []
    for title, key, options in wanted:
        curves = {name: comparison.mean_curve(groups[name], key) for name in names}
        series = {name: curve for name, curve in curves.items() if len(curve[0]) > 1}
        if series:
            blocks.append(figures.curves(title, series, colours=colours, **options))
    few = len(names) < len(groups)
    lead = f"Means over seeds, of the best {MOST_LINES} methods." if few else "Means over seeds."
    return Section("Learning", blocks, lead)


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
    note = ""
    if len(classes) > MOST_CELLS:
        # The most telling ones: where the methods together gain or lose most.
        total = {label: sum(gains.get((name, label), 0.0) for name in names) for label in classes}
        half = MOST_CELLS // 2
        ordered = sorted(classes, key=lambda label: -total[label])
        note = f"The {half} classes with the largest gains and the {half} with the smallest, of {len(classes)}."
        classes = ordered[:half] + ordered[-half:]
    block = figures.heatmap(
        "Gain per class over labels alone, in points",
        [[gains.get((name, label)) for label in classes] for name in names],
        names,
        classes,
        gains=True,
        note=note,
        alt=f"Gain per class over labels alone, {len(names)} methods, {len(classes)} classes",
        wide=True,
    )
    lead = "Means over the seeds that both have; small classes vary by chance alone."
    return Section("Classes", [block], lead)


def _robustness(groups: Groups, rows: Sequence[Row]) -> Section:
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row["name"], row["corruption"]), []).append(row["accuracy"])
    names = [name for name in groups if any(key[0] == name for key in found)]
    kinds = list(dict.fromkeys(kind for _, kind in found))
    if not found:
        return Section("Robustness", [])
    block = figures.heatmap(
        "Accuracy under corruption, in percent",
        [[mean(found.get((name, kind), [])) for kind in kinds] for name in names],
        names,
        [kind.replace("_", " ") for kind in kinds],
        note="Means over severities 1 to 5 and seeds. After ImageNet-C in kind; the numbers are not ImageNet-C's.",
        wide=True,
    )
    return Section("Robustness", [block])


def _cost(groups: Groups, rows: Sequence[Row]) -> Section:
    cells = [
        (
            row["name"],
            str(row["runs"]),
            duration(row["seconds"]),
            f"{row['steps']:,}",
            size(row["peak_memory_mb"] * 2**20),
            size(row["peak_device_memory_mb"] and row["peak_device_memory_mb"] * 2**20),
            row["device"],
        )
        for row in rows
    ]
    columns = ("method", "runs", "time per run", "steps", "peak memory", "device memory", "device")
    lead = ""
    extraction = comparison.extraction_seconds(groups)
    if extraction is not None:
        total = sum(row["seconds"] * row["runs"] for row in rows)
        lead = (
            f"The teacher's features took {duration(extraction)}, once for all "
            f"{sum(row['runs'] for row in rows)} runs; the runs took {duration(total)} together."
        )
    blocks: list[Block] = [Table("Time and memory", columns, cells)]
    if len(rows) > 1:
        where = [
            (row["name"], row["seconds"], statistics.fmean(run.top1 for run in groups[row["name"]]))
            for row in rows
        ]
        blocks.append(figures.against("Accuracy against training time", where, x="seconds per run"))
    return Section("Cost", blocks, lead)


def _record(groups: Groups, rows: Sequence[Row]) -> Section:
    cells = [
        (f"{row['name']}, seed {row['seed']}", percent(row["top1"]), duration(row["seconds"]))
        for row in rows
    ]
    links = [f"{quote(row['folder'])}/report.html" for row in rows]
    blocks: list[Block] = [Table("Pages of the runs", ("run", "top-1", "time"), cells, links=links)]
    differing = comparison.differing(groups)
    if differing:
        text = "\n".join(f"{key}: {' | '.join(values)}" for key, values in differing.items())
        title = "Settings besides the methods' own that differ between these runs"
        blocks.append(Text(title, text))
    return Section("Runs", blocks)
