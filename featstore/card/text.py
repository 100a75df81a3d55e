"""Fields, sources and titles as text, for the card and the page."""

from pathlib import PurePosixPath

from featstore.card.escape import plain
from featstore.card.statement import Statement
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import (
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
    SourceRecord,
    TopKEncoding,
)


def title_of(manifest: Manifest, statement: Statement) -> str:
    """The title by the authors; by default the names of source and teachers."""
    if statement.title:
        return plain(statement.title)
    teachers = " and ".join(plain(item.name) for _, item in sorted(manifest.teachers.items()))
    name = source_name(manifest.source)
    return f"{name}, features of {teachers}" if teachers else f"{name}, features"


def source_name(source: SourceRecord) -> str:
    """Name of the images: the last part of their path, without private folders."""
    if source.kind in ("folder", "tars", "hf"):
        return plain(PurePosixPath(source.uri.split("{")[0].rstrip("/*-")).name, 80) or plain(
            source.kind
        )
    return plain(source.uri or source.kind, 80)


def shape_text(spec: FieldRecord) -> str:
    """Shape of one view of one row: ``7 x 7 x 1,024``."""
    return " x ".join(f"{size:,}" for size in spec.shape) or "one"


def encoding_text(spec: FieldRecord) -> str:
    """The type on disk, with its error if that was measured."""
    encoding = spec.encoding
    codec = "" if spec.codec == "raw" else f", {spec.codec}"
    if isinstance(encoding, Int8Encoding):
        return (
            f"int8 by {encoding.scheme}{codec}; relative error {encoding.relative_l2:.2g}, worst cosine "
            f"{encoding.cosine_worst:.4f}"
        )
    if isinstance(encoding, TopKEncoding):
        return f"{spec.dtype}, largest of {encoding.num_classes:,}{codec}"
    if isinstance(encoding, RaggedEncoding):
        return f"{spec.dtype}, up to {encoding.most_items:,} items per image{codec}"
    return f"{spec.dtype}{codec}"
