"""Thumbnails of samples from a local copy of the images."""

import base64
import io
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from featstore.card.survey import Sample
from featstore.errors import ConfigError, DecodeError
from featstore.format.manifest import Manifest
from featstore.sources import KINDS, open_source
from featstore.sources.config import SourceConfig
from featstore.sources.decode import decode_image

SIDE_PX = 72
QUALITY = 70
MOST_BYTES = 64 * 2**20  # a larger file gets no thumbnail

FOLDER_KINDS = ("folder", "arrays", "npy", "parquet", "clip-retrieval")
"""Kinds of sources whose sample ids are paths below the folder of the images."""

Read = Callable[[str], bytes]


def thumbnails(images: Path, manifest: Manifest, sample: Sample) -> list[str]:
    """A data URI per sample, "" if its image is missing, unreadable or has another SHA-256 than the stored one.

    Ids of an untrusted store open no file outside the folder.

    Args:
        images: local copy of the store's images.

    Raises:
        ConfigError: no image of the sample was found.
        SourceError: the images cannot be listed.
    """
    read = (
        _folder_reader(images)
        if manifest.source.kind in FOLDER_KINDS
        else _source_reader(images, manifest)
    )
    found = [
        _thumbnail(read, sample_id, digest.tobytes())
        for sample_id, digest in zip(sample.ids, sample.hashes, strict=True)
    ]
    if not any(found):
        raise ConfigError(
            f"{images}: holds none of {len(sample.ids):,} images of the store with the extracted content. "
            f"Expected files such as {sample.ids[0]!r} below that folder."
        )
    return found


def _folder_reader(images: Path) -> Read:
    root = images.resolve()

    def read(sample_id: str) -> bytes:
        path = (root / sample_id).resolve()
        if not path.is_relative_to(root) or not path.is_file() or path.stat().st_size > MOST_BYTES:
            return b""
        return path.read_bytes()

    return read


def _source_reader(images: Path, manifest: Manifest) -> Read:
    kind: Any = manifest.source.kind
    if kind not in KINDS:
        raise ConfigError(
            f"{images}: images of a source of kind {kind!r} cannot be read; expected one of {[*KINDS]}."
        )
    source = open_source(SourceConfig(kind=kind, path=str(images)))
    rows = {sample_id: row for row, sample_id in enumerate(source.sample_ids)}
    return lambda sample_id: source.read(rows[sample_id]) if sample_id in rows else b""


def _thumbnail(read: Read, sample_id: str, digest: bytes) -> str:
    try:
        data = read(sample_id)
        if any(digest) and sha256(data).digest() != digest:  # zeros: the content is not known
            return ""
        picture = decode_image(data)
    except (OSError, ValueError, DecodeError):  # ValueError: an id with a zero byte is no path
        return ""
    picture.thumbnail((SIDE_PX, SIDE_PX))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
