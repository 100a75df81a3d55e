"""The HTML page of a store: map of the images, statistics of the features, duplicates, extraction, licences."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featstore.card import figures
from featstore.card.escape import plain
from featstore.card.explore import Explorer, explorer_data
from featstore.card.findings import Duplicates, Findings
from featstore.card.licences import known
from featstore.card.statement import Statement, teacher_licence
from featstore.card.statistics import canonical
from featstore.card.survey import OTHERS, class_name
from featstore.card.text import encoding_text, shape_text, source_name, title_of
from featstore.display.parts import Block, Page, Section, Table, Text, Tile
from featstore.display.render import render
from featstore.display.text import count, format_bytes, format_rate, format_seconds
from featstore.selection.near_duplicates import THRESHOLD

MORE = Path(__file__).parent / "templates"

MOST_LISTED = 20  # rows of the table of skipped images
MOST_ABOVE = 0.25
"""Share of images with a near duplicate above which the threshold is not evidence of copies."""


def build_store_page(findings: Findings, statement: Statement) -> Page:
    """Build the page."""
    manifest = findings.survey.manifest
    return Page(
        title=title_of(manifest, statement),
        subtitle=_subtitle(findings),
        finding=_finding(findings),
        tiles=_tiles(findings),
        sections=[
            _explorer(findings),
            _fields(findings),
            _classes(findings),
            _duplicates(findings),
            _extraction(findings),
            _sizes(findings),
            _origin(findings, statement),
        ],
        closing=f"Fingerprint {manifest.fingerprint}, uuid {plain(manifest.uuid)}, created {plain(manifest.created)}.",
    )


def html(page: Page) -> str:
    """The page as one file."""
    return render(page, more=MORE)


def _subtitle(findings: Findings) -> str:
    manifest = findings.survey.manifest
    teachers = ", ".join(
        plain(f"{item.library} {item.name} {item.tag}")
        for _, item in sorted(manifest.teachers.items())
    )
    form = "Zarr v3" if manifest.container == "zarr" else "WebDataset tars"
    return (
        f"Features of {source_name(manifest.source)}{f' by {teachers}' if teachers else ''}; "
        f"{count(len(manifest.views), 'view')} per image; {form}."
    )


def _finding(findings: Findings) -> str:
    manifest = findings.survey.manifest
    parts = [f"Features of {count(findings.survey.valid_rows, 'image')}."]
    if not findings.fields:
        parts = [f"{count(manifest.num_rows, 'row')} without a field of floating point vectors."]
    if findings.map is not None:
        item = findings.fields[findings.map.field]
        parts.append(
            f"Effective dimension of {item.name}: {item.entropy:.0f} of {item.width}; "
            f"{count(item.for_90, 'principal component', 'principal components')} hold 90% of its variance."
        )
    dead = {name: len(item.dead) for name, item in findings.fields.items() if len(item.dead)}
    broken = {name: item.not_finite for name, item in findings.fields.items() if item.not_finite}
    if dead:
        parts.append(f"Constant channels: {_listed(dead)}.")
    if broken:
        parts.append(f"Vectors with NaN or infinity in the sample: {_listed(broken)}.")
    own = findings.duplicates
    if own is not None:
        among = "" if own.whole else f" among {count(len(own.cosines), 'image')} of the sample"
        found = [
            count(number, what)
            for number, what in (
                (len(own.exact), "group of identical files"),
                (own.found if _above(own) <= MOST_ABOVE else 0, "pair of near duplicates"),
            )
            if number
        ]
        if found or not own.found:
            parts.append(f"{', '.join(found) or 'No duplicates'}{among}.")
    return " ".join(parts)


def _above(own: Duplicates) -> float:
    """Share of images with a near duplicate."""
    return float((own.cosines >= THRESHOLD).mean()) if len(own.cosines) else 0.0


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def _tiles(findings: Findings) -> list[Tile]:
    counted, manifest = findings.survey, findings.survey.manifest
    skipped = f"{counted.invalid_rows:,} skipped" if counted.invalid_rows else "none skipped"
    per_image = f"{format_bytes(counted.bytes / manifest.num_rows)} per image"
    tiles = [
        Tile("Images", f"{counted.valid_rows:,}", skipped),
        Tile("Size", format_bytes(counted.bytes), per_image),
        Tile("Fields", str(len(manifest.fields)), f"{count(len(manifest.views), 'view')} each"),
    ]
    if counted.class_counts:
        about = "" if counted.whole else "about "
        labelled = f"{about}{counted.labelled_rows:,} labelled"
        tiles.append(Tile("Classes", f"{len(counted.class_counts):,}", labelled))
    if findings.map is not None:
        item = findings.fields[findings.map.field]
        tiles.append(
            Tile("Effective dimension", f"{item.entropy:.0f}", f"of {item.width}, {item.name}")
        )
    rate = _rate(counted.seconds, sum(entry.rows[1] - entry.rows[0] for entry in counted.entries))
    if rate is not None:
        tiles.append(Tile("Extraction", f"{format_rate(rate)}/s", "images per process"))
    return tiles


def _rate(seconds: Mapping[str, float], rows: int) -> float | None:
    """Images per second of a process, which loads images or waits for the teacher, and writes in parallel."""
    spent = seconds.get("load", 0.0) + seconds.get("teacher", 0.0)
    return rows / spent if spent > 0 and "teacher" in seconds else None


def _explorer(findings: Findings) -> Section:
    found, manifest = findings.map, findings.survey.manifest
    if found is None:
        return Section("Map of the images", [])
    number = count(len(found.sample.rows), "image")
    which = f"All {number}" if found.sample.whole else f"{number} of {findings.survey.valid_rows:,}"
    block = Explorer(
        f"{which}, by {found.field}",
        figures.sample_map(manifest, found),
        explorer_data(manifest, found, findings.pictures),
        f"Map of {number}; the search beside it finds them by id and class",
        "t-SNE of the principal components: groups are meaningful; axes and distances between distant groups are not. "
        "Neighbours: cosine of the centred features among the images of this map. Colours: classes; names that would "
        "overlap are hidden.",
    )
    return Section("Map of the images", [block])


def _fields(findings: Findings) -> Section:
    if not findings.fields:
        return Section("Features", [])
    manifest, sample = findings.survey.manifest, findings.sample
    shown = list(findings.fields.values())
    drawn = shown[: figures.MOST_FIELDS]
    rows = []
    for item in shown:
        low, middle, high = np.quantile(item.norms, [0.01, 0.5, 0.99])
        rows.append(
            (
                item.name, f"{item.vectors:,}", f"{middle:.3g}", f"{low:.3g} to {high:.3g}",
                f"{item.mean_cosine:.2f}", f"{item.entropy:.1f} of {item.width:,}", f"{item.participation:.1f}",
                f"{item.for_90:,}",
                f"{len(item.dead):,}", f"{item.channel_mean.min():.2g} to {item.channel_mean.max():.2g}",
                f"{item.channel_std.min():.2g} to {item.channel_std.max():.2g}",
            )
        )  # fmt: skip
    head = (
        "field", "vectors", "median norm", "norms, 1% to 99%", "mean cosine", "effective dimension",
        "participation ratio", "components for 90%", "constant channels", "channel means", "channel deviations",
    )  # fmt: skip
    note = (
        "Mean cosine: between two vectors, not centred. With v the variances of the principal components and "
        "p = v / sum(v): effective dimension exp(-sum(p ln p)), participation ratio sum(v)^2 / sum(v^2). Constant: "
        "standard deviation below one millionth of the median channel's."
    )
    left = [name for name in sorted(manifest.fields) if name not in findings.fields]
    if left:
        note += f" Not measured, no floating point vectors: {', '.join(left)}."
    which = "All" if sample.whole else "A sample of"
    lead = f"{which} {count(len(sample.rows), 'image')}, {manifest.views.views[canonical(manifest)]} view."
    if any(len(manifest.fields[item.name].shape) > 1 for item in shown):
        lead += " A grid has one vector per position."
    blocks: list[Block] = [figures.norms(drawn), figures.spectra(drawn), figures.channels(drawn)]
    return Section("Features", [*blocks, Table("Statistics", head, rows, note)], lead, columns=3)


def _classes(findings: Findings) -> Section:
    counts, manifest = findings.survey.class_counts, findings.survey.manifest
    if not counts:
        return Section("Classes", [])
    names = [(class_name(manifest, key), value) for key, value in counts.items()]
    values = np.array(list(counts.values()), dtype=np.float64)
    equal = values.max() == values.min()
    if equal:
        lead = f"{count(len(names), 'class')} of {count(names[0][1], 'image')} each."
    else:
        shares = values / values.sum()
        even = float(np.exp(-(shares * np.log(shares)).sum()))
        lead = (
            f"{count(len(names), 'class')} of {names[-1][1]:,} to {names[0][1]:,} images; effective number of classes "
            f"(exp of the entropy): {even:.1f}."
        )
    unlabelled = manifest.num_rows - findings.survey.labelled_rows
    if unlabelled > 0:
        lead += f" {unlabelled:,} images have no label."
    if not findings.survey.whole:
        lead += f" Estimated from {len(findings.survey.entries):,} of {count(manifest.num_shards, 'shard')}."
    empty = [name for at, name in enumerate(manifest.source.class_names) if at not in counts]
    if empty:
        shown = ", ".join(plain(name, 40) for name in empty[:5])
        lead += (
            f" Classes without images: {len(empty):,} ({shown}{', ...' if len(empty) > 5 else ''})."
        )
    if equal and len(names) > figures.MOST_BARS:  # equal bars without names show nothing
        rows = [(plain(name, 60), f"{value:,}") for name, value in names]
        text = "\n".join(f"{name}  {value}" for name, value in rows)
        return Section("Classes", [Text("Names of the classes", text[:200_000])], lead)
    blocks: list[Block] = [figures.classes(manifest, counts)]
    if len(names) > figures.MOST_BARS:
        for title, some in (("Largest classes", names[:5]), ("Smallest classes", names[:-6:-1])):
            rows = [(plain(name, 60), f"{value:,}") for name, value in some]
            blocks.append(Table(title, ("class", "images"), rows, wide=False))
    return Section("Classes", blocks, lead)


def _duplicates(findings: Findings) -> Section:
    own, found = findings.duplicates, findings.map
    if own is None or found is None:
        return Section("Duplicates", [])
    blocks: list[Block] = []
    if len(own.cosines):
        blocks.append(figures.nearest_figure(own.cosines, THRESHOLD))
    near = [(plain(one, 60), plain(other, 60), f"{cosine:.4f}") for one, other, cosine in own.near]
    if near:
        more = f"The {len(near)} most similar of {own.found:,}." if own.found > len(near) else ""
        head: tuple[str, ...] = ("image", "other image", "cosine")
        blocks.append(Table("Near duplicates", head, near, more, names=2))
    groups = [
        (plain(group[0], 60), ", ".join(plain(name, 60) for name in group[1:6]))
        for group in own.exact
        if group
    ]
    if groups:
        more = (
            f"The first {len(groups)} of {len(own.exact):,} groups."
            if len(own.exact) > len(groups)
            else ""
        )
        blocks.append(Table("Identical files", ("image", "same bytes"), groups, more, names=2))
    which = "valid images" if own.whole else "images of the map"
    lead = f"All pairs of the {len(own.cosines):,} {which} were compared by {found.field}."
    above = _above(own)
    if above > MOST_ABOVE:
        lead += f" {above:.0%} of them have a neighbour above the threshold, so it does not indicate copies here."
    lead += (
        " To compare test images with training images, run: featstore inspect STORE --duplicates."
    )
    return Section("Duplicates", blocks, lead)


def _extraction(findings: Findings) -> Section:
    counted = findings.survey
    seconds = {plain(name, 20): value for name, value in counted.seconds.items() if value > 0}
    rates = [
        (entry.shard, rate)
        for entry in counted.entries
        if (rate := _rate(entry.seconds, entry.rows[1] - entry.rows[0])) is not None
    ]
    blocks: list[Block] = []
    if len(rates) > 1:
        blocks.append(figures.rate([shard for shard, _ in rates], [rate for _, rate in rates]))
    if seconds:
        blocks.append(figures.times(seconds, wide=not blocks))
    skipped = counted.invalid[:MOST_LISTED]
    if skipped:
        rows = [(plain(item.sample_id, 80), plain(item.reason)) for item in skipped]
        more = (
            f"{len(rows)} of {counted.invalid_rows:,}." if counted.invalid_rows > len(rows) else ""
        )
        blocks.append(Table("Skipped images", ("image", "reason"), rows, more, names=2))
    if not blocks:
        return Section("Extraction", [])
    spent = sum(seconds.get(name, 0.0) for name in ("load", "teacher"))
    lead = []
    if spent:
        lead.append(
            f"{format_seconds(spent)} of loading images and of the teacher, summed over processes."
        )
    if not counted.whole:
        total = count(counted.manifest.num_shards, "shard")
        lead.append(f"From {len(counted.entries):,} of {total}.")
    if not counted.invalid_rows:
        lead.append("No image was skipped.")
    return Section("Extraction", blocks, " ".join(lead))


def _sizes(findings: Findings) -> Section:
    counted, manifest = findings.survey, findings.survey.manifest
    views, whole = len(manifest.views), counted.bytes or 1
    rows = []
    for name, size in counted.field_bytes.items():
        spec = None if name == OTHERS else manifest.fields[name]
        what = (
            ("", "", "", "")
            if spec is None
            else (spec.meaning[:80], shape_text(spec), str(views if spec.per_view else 1), encoding_text(spec))
        )  # fmt: skip
        per_row = format_bytes(size / manifest.num_rows)
        cells = (name, *what, per_row, format_bytes(size), f"{size / whole:.1%}")
        rows.append([plain(cell) for cell in cells])
    head = ("field", "content", "shape", "views", "stored as", "per image", "bytes", "share")
    note = ""
    if manifest.container == "webdataset":
        note = "Bytes of a field are its numbers; tar headers, texts and ragged items are in the last row."
    shards = count(manifest.num_shards, "shard")
    lead = f"{format_bytes(counted.bytes)} in {shards} of up to {count(manifest.work.shard_rows, 'row')}."
    return Section("Size", [Table("By field", head, rows, note, names=3)], lead)


def _origin(findings: Findings, statement: Statement) -> Section:
    manifest = findings.survey.manifest
    teachers = sorted(manifest.teachers.items())
    stated = [
        (
            "teacher's weights" if len(teachers) == 1 else f"teacher {name}",
            teacher_licence(manifest, statement, name),
        )
        for name, _ in teachers
    ]
    rows: list[tuple[str, ...]] = []
    for what, licence in [*stated, ("images", statement.image_licence)]:
        entry = known(licence)
        rows.append((what, plain(licence) or "unknown", entry.terms if entry else ""))
    if not any(row[2] for row in rows):
        rows = [row[:2] for row in rows]
    blocks: list[Block] = [
        Table(
            "Licences", ("of", "licence", "summary")[: len(rows[0])], rows,
            "All of them apply to the features.", names=3, wide=False,
        )
    ]  # fmt: skip
    made = [(plain(name), plain(version)) for name, version in sorted(manifest.created_by.items())]
    blocks.append(Table("Software", ("package", "version"), made, wide=False, names=2))
    weights = [
        (
            plain(f"{item.library} {item.name} {item.tag}"), item.precision, plain(item.weights_sha256),
            *([name] if len(teachers) > 1 else []),
        )
        for name, item in teachers
    ]  # fmt: skip
    if weights:
        head = ("model", "precision", "SHA-256 of the weights", "name in the store")
        title = "Teachers" if len(teachers) > 1 else "Teacher"
        blocks.append(Table(title, head[: len(weights[0])], weights, names=4))
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=True)
    blocks.append(Text("Manifest", text[:200_000]))
    return Section("Origin and licences", blocks)
