"""README.md: the card of a store, for readers and for the Hugging Face hub.

It depends only on the store and on the authors' statement, not on the time or on paths of this machine.
"""

import re

from featstore.card.escape import bibtex, code, escape, plain
from featstore.card.examples import examples
from featstore.card.front import front_matter
from featstore.card.licences import family_of, known
from featstore.card.statement import NOTES_BEGIN, NOTES_END, Statement, teacher_licence
from featstore.card.survey import Survey, class_name, survey
from featstore.card.text import encoding_text, shape_text, source_name, title_of
from featstore.display.text import count, format_bytes, markdown_table
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import PreprocessingRecord, TeacherRecord
from featstore.format.pictures import PICTURES
from featstore.reading.store import FeatureStore

MOST_SKIPS = 20  # skipped images in the list
MOST_VIEWS = 12  # views in the list


def write_card(store: FeatureStore, statement: Statement, notes: str = "") -> str:
    """The card of a store. Equal stores and statements give equal text.

    Args:
        notes: Markdown by the authors, inserted unchanged.
    """
    counted = survey(store)
    manifest = store.manifest
    parts = [
        front_matter(manifest, statement),
        [f"# {escape(title_of(manifest, statement))}", "", *_what(counted, statement)],
        [NOTES_BEGIN, notes or "", NOTES_END],
        ["## Licence", "", *_licence(manifest, statement)],
        ["## Content", "", *_content(counted)],
        ["## Usage", "", *examples(manifest)],
        ["## Verification", "", *_verification(manifest)],
        ["## Skipped images", "", *_skips(counted)],
        ["## Versions", "", *_versions(manifest)],
        ["## Citation", "", *_citation(manifest, statement)],
    ]
    return "\n".join("\n".join(part) + "\n" for part in parts)


def missing(manifest: Manifest, statement: Statement) -> list[str]:
    """What the card lacks because it was not stated, each with the flag that states it."""
    found = [
        f"licence of teacher {name}: --teacher-licence {f'{name}=' if len(manifest.teachers) > 1 else ''}LICENCE"
        for name in sorted(manifest.teachers)
        if not teacher_licence(manifest, statement, name)
    ]
    if not statement.image_licence:
        found.append("licence of the images: --image-licence LICENCE")
    if not statement.authors:
        found.append("authors: --author NAME")
    return found


def _what(counted: Survey, statement: Statement) -> list[str]:
    manifest = counted.manifest
    names = " and ".join(
        code(f"{item.name} {item.tag}".strip()) for _, item in sorted(manifest.teachers.items())
    )
    views = len(manifest.views)
    lines = [
        f"Stored features of **{manifest.num_rows:,} images** ({escape(source_name(manifest.source))}), computed "
        f"{f'once by the frozen {names}' if names else 'without a teacher'}, {count(views, 'view')} per image. They "
        "replace the teacher when a small model is distilled from it. The images are not included.",
        "",
    ]
    if statement.authors:
        lines += [f"By {escape(', '.join(statement.authors))}.", ""]
    if statement.homepage:
        lines += [f"Homepage: <{plain(statement.homepage)}>", ""]
    facts = [
        (
            "images",
            f"{manifest.num_rows:,}: {counted.valid_rows:,} with features, {counted.invalid_rows:,} skipped",
        ),
        (
            "bytes",
            f"{format_bytes(counted.bytes)}, {format_bytes(counted.bytes / manifest.num_rows)} per image",
        ),
        ("container", "Zarr v3" if manifest.container == "zarr" else "WebDataset tars"),
        ("fingerprint", code(manifest.fingerprint)),
        ("uuid", code(manifest.uuid)),
        ("created", escape(manifest.created)),
    ]
    return [*lines, *markdown_table(("", ""), facts)]


def _licence(manifest: Manifest, statement: Statement) -> list[str]:
    rows = []
    for name, teacher in sorted(manifest.teachers.items()):
        text = teacher_licence(manifest, statement, name)
        who = "authors of the store" if statement.teacher_licences.get(name) else "manifest"
        rows.append((f"teacher {code(name)}", *_licence_cells(text, who)))
        note = _family_note(teacher, text)
        if note:
            rows[-1] = (*rows[-1][:3], f"{rows[-1][3]} {note}".strip())
    rows.append(("images", *_licence_cells(statement.image_licence, "authors of the store")))
    unknown = [row[0] for row in rows if row[1] == "**unknown**"]
    lines = [
        "Features are derived from the images and from the teacher's weights, so the licences of **both** apply; where "
        "they differ, the stricter one does. They are given here as stated, without verification.",
        "",
        *markdown_table(("of", "licence", "stated by", "summary"), rows),
    ]
    if unknown:
        lines += [
            "",
            f"**Unknown: {', '.join(unknown)}.** Ask the authors before you share the features or a model trained on "
            "them.",
        ]
    if PICTURES in manifest.fields:
        lines += [
            "",
            f"**The field {code(PICTURES)} holds copies of the images**, so passing this store on passes them on, "
            f"which their licence must permit. `featstore push . URL --without {PICTURES}` leaves them out.",
        ]
    return lines


def _licence_cells(text: str, who: str) -> tuple[str, str, str]:
    if not text:
        return "**unknown**", "-", ""
    entry = known(text)
    if entry is None:
        return escape(text), who, ""
    return f"[{entry.name}]({entry.url})", who, entry.terms


def _family_note(teacher: TeacherRecord, stated: str) -> str:
    """The licence of the published weights of this name, if it is known and differs from the stated one."""
    family = family_of(teacher)
    if family is None or not family.licence:
        return ""
    entry = known(family.licence)
    assert entry is not None, family
    if known(stated) is entry:
        return ""
    return (
        f"(The published {family.name} weights are under {entry.name}, <{family.source}>; these may be other weights "
        "of that name.)"
    )


def _content(counted: Survey) -> list[str]:
    manifest = counted.manifest
    rows = []
    for name, size in counted.field_bytes.items():
        spec = manifest.fields.get(name)
        if spec is None:
            rows.append((name, "", "", "", "", format_bytes(size)))
            continue
        by = code(spec.teacher) if spec.teacher else ""
        per = f"{shape_text(spec)}{'' if spec.per_view else ', one for all views'}"
        rows.append(
            (
                code(name),
                escape(spec.meaning),
                by,
                per,
                escape(encoding_text(spec)),
                format_bytes(size),
            )
        )
    lines = markdown_table(("field", "content", "teacher", "per view", "stored as", "bytes"), rows)
    if manifest.container == "webdataset":
        lines += [
            "",
            "Bytes of a field are its numbers; tar headers, texts and ragged items are in the last row.",
        ]
    lines += ["", "**Teachers**", ""]
    for name, teacher in sorted(manifest.teachers.items()):
        lines.append(f"- {code(name)}: {_teacher(teacher)}")
        weights = teacher.weights_sha256
        known = code(weights) if weights.strip("0") else "not known"
        lines.append(f"  - SHA-256 of the weights: {known}")
        rule = teacher.preprocessing
        if rule is not None and not isinstance(rule, PreprocessingRecord):
            lines.append(f"  - input: {rule}")
        elif rule is not None:
            lines.append(
                f"  - input {rule.size[0]} x {rule.size[1]} px, {rule.crop_mode} crop {rule.crop_pct:g}, "
                f"{rule.interpolation}, mean {_numbers(rule.mean)}, std {_numbers(rule.std)}, decoded by "
                f"{code(rule.decode)}"
            )
    if not manifest.teachers:
        lines.append("- none")
    if manifest.artefacts:
        lines += ["", "**Files beside the rows** (safetensors)", ""]
        lines += [
            f"- {code(name)}, {format_bytes(item.bytes)}: {escape(item.meaning)}"
            for name, item in sorted(manifest.artefacts.items())
        ]
    lines += ["", f"**Views** (second axis of a field; seed {manifest.views.seed})", ""]
    views = [f"{number}. {view}" for number, view in enumerate(manifest.views.views)]
    lines += [f"- {text.replace('. ', ': ', 1)}" for text in views[:MOST_VIEWS]]
    if len(views) > MOST_VIEWS:
        lines.append(f"- and {len(views) - MOST_VIEWS} more, listed in `manifest.json`")
    return [*lines, "", *_images(counted)]


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _teacher(teacher: TeacherRecord) -> str:
    text = f"{code(f'{teacher.library} {teacher.name} {teacher.tag}'.strip())}, precision {teacher.precision}"
    if teacher.mode == "batch":
        text += ", **with batch statistics**: a row depends on the other images of its batch"
    return text


def _images(counted: Survey) -> list[str]:
    manifest = counted.manifest
    source = manifest.source
    lines = [
        f"**Images**: {escape(source_name(source))} (source kind {code(source.kind)}), {source.num_samples:,} samples. "
        "A row has the sample id of its image and the SHA-256 of the image's bytes."
    ]
    if not source.has_labels:
        return [*lines, "No labels."]
    about = "" if counted.whole else "about "
    lines.append(
        f"{about}{counted.labelled_rows:,} of them are labelled, {count(len(counted.class_counts), 'class')}:"
    )
    counts = list(counted.class_counts.items())
    shown = counts if len(counts) <= 12 else counts[:6]
    listed = [f"{code(class_name(manifest, key))} {value:,}" for key, value in shown]
    if len(counts) > len(shown):
        key, value = counts[-1]
        listed.append(f"... smallest: {code(class_name(manifest, key))} {value:,}")
    return [*lines, ", ".join(listed) + "."] if counts else lines


def _verification(manifest: Manifest) -> list[str]:
    return [
        "```bash",
        "featstore verify .                                   # compare all bytes with the checksums in the ledger",
        "featstore verify . --recompute 32 --source.path IMAGES  # recompute the features of 32 of your images",
        "featstore verify . --public-key KEY.pub              # check the authors' signature, if there is a model.sig",
        "featstore inspect . --duplicates                     # find duplicate images",
        "```",
        "",
        f"`featstore inspect .` must print the fingerprint {code(manifest.fingerprint)}. It identifies teacher, "
        "weights, preprocessing, views and images. Against deliberate changes of the store together with its "
        "checksums, only the signature protects.",
    ]


def _skips(counted: Survey) -> list[str]:
    if not counted.invalid_rows:
        return ["None: every image has features."]
    lines = [
        f"{counted.invalid_rows:,} of {count(counted.manifest.num_rows, 'image')} have no features. Their rows are "
        "marked invalid, hold zeros, and the reader refuses them.",
        "",
    ]
    reasons: dict[str, int] = {}
    for item in counted.invalid:
        reason = _kind_of(item.reason)
        reasons[reason] = reasons.get(reason, 0) + 1
    ordered = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
    lines += markdown_table(
        ("reason", "images"),
        [(escape(reason), f"{count:,}") for reason, count in ordered[:MOST_SKIPS]],
    )
    shown = counted.invalid[:MOST_SKIPS]
    lines += [
        "",
        *markdown_table(
            ("image", "reason"), [(code(item.sample_id), escape(item.reason)) for item in shown]
        ),
    ]
    if counted.invalid_rows > len(shown):
        lines += [
            "",
            f"{len(shown)} of {counted.invalid_rows:,}; all are listed by `featstore inspect . --json`.",
        ]
    return lines


def _kind_of(reason: str) -> str:
    """A reason without its details: what follows a colon or a bracket."""
    return re.split(r"[:(]", plain(reason))[0].strip() or plain(reason)


def _versions(manifest: Manifest) -> list[str]:
    rows = [
        (str(item.version), escape(item.created), f"{item.rows:,}", code(item.fingerprint))
        for item in manifest.history
    ]
    before = manifest.history[-1].rows if manifest.history else 0
    rows.append(
        (
            str(manifest.version), f"{escape(manifest.created)}{'' if before else ' (created)'}",
            f"{manifest.num_rows:,}", code(manifest.fingerprint),
        )
    )  # fmt: skip
    made = ", ".join(
        f"{escape(name)} {escape(version)}" for name, version in sorted(manifest.created_by.items())
    )
    lines = markdown_table(("version", "date", "images", "fingerprint"), rows)
    if manifest.history:
        lines += ["", "Each version appended images; the rows of earlier versions are unchanged."]
    return [
        *lines,
        "",
        f"Created with {made}." if made else "The software that created it is not recorded.",
    ]


def _citation(manifest: Manifest, statement: Statement) -> list[str]:
    year = re.match(r"\d{4}", manifest.created)
    entry = {
        "title": "{" + bibtex(title_of(manifest, statement)) + "}",
        "author": " and ".join(bibtex(name) for name in statement.authors),
        "year": year[0] if year else "",
        "howpublished": f"Feature store, version {manifest.version}, {manifest.num_rows:,} images",
        "note": f"fingerprint {manifest.fingerprint}, uuid {bibtex(manifest.uuid)}",
        "url": plain(statement.homepage).replace("{", "%7B").replace("}", "%7D"),
    }
    lines = ["The store:", "", "```bibtex", f"@misc{{featurestore-{manifest.fingerprint[:12]},"]
    lines += [f"  {name} = {{{value}}}," for name, value in entry.items() if value]
    lines += ["}", "```"]
    families = {
        family.name: family for item in manifest.teachers.values() if (family := family_of(item))
    }
    for name, family in sorted(families.items()):
        lines += [
            "",
            f"The teacher ({name}, inferred from its name):",
            "",
            "```bibtex",
            *family.citation.split("\n"),
            "```",
        ]
    return [*lines, "", "Cite the publication of the images as well, if there is one."]
