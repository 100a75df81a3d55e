"""The HTML page of a store: what is in it, how it is spread, what lies beside what, and what it cost."""

import json
from collections.abc import Mapping, Sequence
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
from featstore.duplicates.near import THRESHOLD
from featstore.pages.parts import Block, Page, Section, Table, Text, Tile
from featstore.pages.render import render
from featstore.text import format_bytes, format_rate, format_seconds

MORE = Path(__file__).parent / "templates"

MOST_LISTED = 20
"""Lines of a table of skipped images."""
MOST_ABOVE = 0.25
"""Share of images with a near duplicate above which the threshold says nothing of copies."""


def build(findings: Findings, statement: Statement) -> Page:
    """Put the page together."""
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
            _twice(findings),
            _extraction(findings),
            _sizes(findings),
            _origin(findings, statement),
        ],
        closing=f"Fingerprint {manifest.fingerprint}, uuid {plain(manifest.uuid)}, made {plain(manifest.created)}.",
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
    views = len(manifest.views)
    form = "Zarr arrays" if manifest.container == "zarr" else "WebDataset tars"
    return (
        f"Features of {source_name(manifest.source)} by {teachers or 'no teacher'}; {_count(views, 'view')} of each "
        f"image; {form}."
    )


def _finding(findings: Findings) -> str:
    manifest, parts = findings.survey.manifest, []
    if findings.map is not None:
        item = findings.fields[findings.map.field]
        parts.append(
            f"{item.name} spans about {item.entropy:.0f} of its {item.width} dimensions; {item.for_90} principal "
            "components hold 90 % of its variance."
        )
    dead = {name: len(item.dead) for name, item in findings.fields.items() if len(item.dead)}
    broken = {name: item.not_finite for name, item in findings.fields.items() if item.not_finite}
    if dead:
        parts.append(f"Channels that do not move: {_listed(dead)}.")
    elif findings.fields:
        parts.append("No channel is dead.")
    if broken:
        parts.append(f"Vectors with NaN or infinity in the sample: {_listed(broken)}.")
    own = findings.duplicates
    if own is not None:
        among = "" if own.whole else f" among {len(own.cosines):,} images of the sample"
        twice = [
            _count(number, what)
            for number, what in (
                (len(own.exact), "group of images with the same bytes"),
                (own.found if _above(own) <= MOST_ABOVE else 0, "pair of near duplicates"),
            )
            if number
        ]
        if twice or not own.found:
            parts.append(f"{', '.join(twice) or 'No image is there twice'}{among}.")
    if not parts:
        parts.append(f"{manifest.num_rows:,} rows without a field of floating point vectors.")
    return " ".join(parts)


def _above(own: Duplicates) -> float:
    """Share of images with a near duplicate."""
    return float((own.cosines >= THRESHOLD).mean()) if len(own.cosines) else 0.0


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def _count(number: int, what: str) -> str:
    """``2 groups of images``: the first word is what is counted."""
    noun, space, rest = what.partition(" ")
    plural = noun if number == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {plural}{space}{rest}"


def _tiles(findings: Findings) -> list[Tile]:
    counted, manifest = findings.survey, findings.survey.manifest
    about = "" if counted.whole else "about "
    tiles = [
        Tile(
            "Images", f"{counted.valid_rows:,}", _count(counted.invalid_rows, "image") + " skipped"
        ),
        Tile(
            "Size",
            format_bytes(counted.bytes),
            f"{format_bytes(counted.bytes / manifest.num_rows)} per image",
        ),
        Tile("Fields", str(len(manifest.fields)), f"{_count(len(manifest.views), 'view')} each"),
    ]
    if counted.class_counts:
        tiles.append(
            Tile(
                "Classes",
                f"{len(counted.class_counts):,}",
                f"{about}{counted.labelled_rows:,} labelled",
            )
        )
    if findings.map is not None:
        item = findings.fields[findings.map.field]
        tiles.append(
            Tile(f"Effective dimension, {item.name}", f"{item.entropy:.0f}", f"of {item.width}")
        )
    rate = _rate(counted.seconds, sum(entry.rows[1] - entry.rows[0] for entry in counted.entries))
    if rate is not None:
        tiles.append(Tile("Extraction", f"{format_rate(rate)}/s", "images, one process"))
    return tiles


def _rate(seconds: Mapping[str, float], rows: int) -> float | None:
    """Images per second of a process: it waits for images or for the teacher, and writes beside that."""
    spent = seconds.get("load", 0.0) + seconds.get("teacher", 0.0)
    return rows / spent if spent > 0 and "teacher" in seconds else None


def _explorer(findings: Findings) -> Section:
    laid_out, manifest = findings.map, findings.survey.manifest
    if laid_out is None:
        return Section("Map of the images", [])
    count = len(laid_out.sample.rows)
    whole = (
        "All"
        if laid_out.sample.whole
        else f"{count:,} random images of {findings.survey.valid_rows:,}:"
    )
    block = Explorer(
        f"{whole} {f'{count:,} images ' if laid_out.sample.whole else ''}by {laid_out.field}",
        figures.sample_map(manifest, laid_out),
        explorer_data(manifest, laid_out, findings.pictures),
        f"Map of {count:,} images; the search beside it finds them by id and class",
        "Principal components, then t-SNE: groups mean something, distances between far groups and the axes do not. "
        "Neighbours are by cosine in the field's own space, among the images of this map, after their mean was taken "
        "off. Colours are classes.",
    )
    return Section("Map of the images", [block])


def _fields(findings: Findings) -> Section:
    if not findings.fields:
        return Section("Features", [])
    manifest = findings.survey.manifest
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
        "field", "vectors", "median norm", "norms, 1 to 99 %", "mean cosine", "effective dimension",
        "participation ratio", "components for 90 %", "dead channels", "channel means", "channel deviations",
    )  # fmt: skip
    note = (
        "Mean cosine: of two vectors as they are; near 1, all point one way. With v the variances of the principal "
        "components: effective dimension exp(-sum p ln p), p = v / sum v; participation ratio (sum v)^2 / sum v^2. "
        "Dead: a deviation below a millionth of the median channel's."
    )
    left = [name for name in sorted(manifest.fields) if name not in findings.fields]
    if left:
        note += f" Not looked into, because they are no floating point vectors: {', '.join(left)}."
    view = manifest.views.views[canonical(manifest)]
    sample = findings.sample
    lead = (
        f"From {'all' if sample.whole else 'a sample of'} {len(sample.rows):,} images, the {view} view. A grid gives "
        "one vector per place."
    )
    blocks: list[Block] = [figures.norms(drawn), figures.spectra(drawn), figures.channels(drawn)]
    return Section("Features", [*blocks, Table("In numbers", head, rows, note)], lead, columns=3)


def _classes(findings: Findings) -> Section:
    counts, manifest = findings.survey.class_counts, findings.survey.manifest
    if not counts:
        return Section("Classes", [])
    names = [(class_name(manifest, key), value) for key, value in counts.items()]
    values = np.array(list(counts.values()), dtype=np.float64)
    shares = values / values.sum()
    even = float(np.exp(-(shares * np.log(shares)).sum()))
    unlabelled = manifest.num_rows - findings.survey.labelled_rows
    lead = f"{_count(len(names), 'class')} of {names[0][1]:,} images each."
    if values.max() > values.min():
        lead = (
            f"{_count(len(names), 'class')} of {names[-1][1]:,} to {names[0][1]:,} images; as balanced as {even:.1f} "
            "classes of one size (exp of the entropy)."
        )
    if unlabelled > 0:
        lead += f" {unlabelled:,} images have no label."
    if not findings.survey.whole:
        lead += (
            f" Reckoned from {len(findings.survey.entries):,} of {manifest.num_shards:,} shards."
        )
    empty = [name for at, name in enumerate(manifest.source.class_names) if at not in counts]
    if empty:
        shown = ", ".join(plain(name, 40) for name in empty[:5])
        lead += f" {len(empty):,} of the named classes have no image: {shown}{', ...' if len(empty) > 5 else ''}."
    blocks: list[Block] = [figures.classes(manifest, counts)]
    if len(names) > figures.MOST_BARS and values.max() > values.min():
        for title, some in (("Largest classes", names[:5]), ("Smallest classes", names[:-6:-1])):
            rows = [(plain(name, 60), f"{value:,}") for name, value in some]
            blocks.append(Table(title, ("class", "images"), rows, wide=False))
    return Section("Classes", blocks, lead)


def _twice(findings: Findings) -> Section:
    own, laid_out = findings.duplicates, findings.map
    if own is None or laid_out is None:
        return Section("Duplicates", [])
    blocks: list[Block] = []
    if len(own.cosines):
        blocks.append(figures.nearest(own.cosines, THRESHOLD))
    rows = [(plain(one, 60), plain(other, 60), f"{cosine:.4f}") for one, other, cosine in own.near]
    if rows:
        more = f"The {len(rows)} most alike of {own.found:,}." if own.found > len(rows) else ""
        blocks.append(
            Table(
                "Near duplicates",
                ("image", "other image", "cosine"),
                rows,
                more,
                names=2,
            )
        )
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
        blocks.append(Table("The same bytes", ("image", "also as"), groups, more, names=2))
    compared = (
        f"All {len(own.cosines):,} valid images were compared with each other"
        if own.whole
        else f"The {len(own.cosines):,} images of the map were compared with each other"
    )
    above = _above(own)
    if above > MOST_ABOVE:
        compared += (
            f"; {above:.0%} have another one above the threshold, so that it tells no copies here"
        )
    lead = (
        f"By {laid_out.field}, {compared[0].lower()}{compared[1:]}. To check test images against "
        "training images: featstore inspect STORE --duplicates."
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
        blocks.append(figures.split(seconds))
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
    lead = (
        f"{format_seconds(spent)} of waiting for images and for the teacher, all processes together."
        if spent
        else ""
    )
    if not counted.whole:
        lead += f" From {len(counted.entries):,} of {counted.manifest.num_shards:,} shards."
    lead += " No image was skipped." if not counted.invalid_rows else ""
    return Section("Extraction", blocks, lead.strip())


def _sizes(findings: Findings) -> Section:
    counted, manifest = findings.survey, findings.survey.manifest
    views, whole = len(manifest.views), counted.bytes or 1
    rows = []
    for name, size in counted.field_bytes.items():
        share = f"{size / whole:.1%}"
        per_row = format_bytes(size / manifest.num_rows)
        if name == OTHERS:
            rows.append((name, "", "", "", "", per_row, format_bytes(size), share))
            continue
        spec = manifest.fields[name]
        rows.append(
            (
                name, spec.meaning[:80], shape_text(spec), f"{views if spec.per_view else 1}", encoding_text(spec),
                per_row, format_bytes(size), share,
            )
        )  # fmt: skip
    head = ("field", "what it is", "shape", "views", "stored as", "per image", "bytes", "share")
    note = (
        ""
        if manifest.container == "zarr"
        else "Fields lie mixed in tars: bytes of their numbers, without headers; texts and ragged items count below."
    )
    lead = f"{format_bytes(counted.bytes)} in {manifest.num_shards:,} shards of {manifest.work.shard_rows:,} rows."
    return Section("Size", [Table("By field", head, _plain_rows(rows), note, names=3)], lead)


def _plain_rows(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[plain(cell) for cell in row] for row in rows]


def _origin(findings: Findings, statement: Statement) -> Section:
    manifest = findings.survey.manifest
    licences = [
        (f"teacher {name}", teacher_licence(manifest, statement, name))
        for name in sorted(manifest.teachers)
    ]
    licences.append(("images", statement.image_licence))
    rows = []
    for what, licence in licences:
        entry = known(licence)
        rows.append((what, plain(licence) or "unknown", entry.terms if entry else ""))
    blocks: list[Block] = [
        Table(
            "Licences", ("of", "licence", "in short"), rows,
            "What a receiver may do with the features follows from all of these together.", names=3, wide=False,
        )
    ]  # fmt: skip
    made = [(plain(name), plain(version)) for name, version in sorted(manifest.created_by.items())]
    blocks.append(Table("Made with", ("what", "version"), made, wide=False, names=2))
    weights = [
        (
            name,
            plain(f"{item.library} {item.name} {item.tag}"),
            f"{item.precision}, {item.weights_sha256}",
        )
        for name, item in sorted(manifest.teachers.items())
    ]
    if weights:
        head = ("teacher", "model", "arithmetic, SHA-256 of the weights")
        blocks.append(Table("Teachers", head, weights, names=3))
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=True)
    blocks.append(Text("The whole manifest", text[:200_000]))
    return Section("Origin and licence", blocks)
