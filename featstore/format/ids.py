"""Sample ids, content hashes, and names that are used as file names."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from featstore.errors import ConfigError, SourceError, StoreError, shorten
from featstore.files.atomic import write_bytes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

HASHED_AT_A_TIME = 65_536  # ids

_TAKEN = ("zarr.json",)  # names that a container uses for its own files


def check_name(name: str) -> str:
    """Return ``name`` if it can safely be a file name inside a store.

    Raises:
        StoreError: It holds a separator, a leading dot or another character that is not allowed, or is reserved.
    """
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise StoreError(
            f"{name!r} cannot name a field; expected a letter or digit, then up to 63 of letters, digits, '_.-'."
        )
    return name


def check_part(part: str) -> str:
    """Return ``part`` if it can be one folder or file name of a path inside a store, in any script.

    Raises:
        StoreError: It is empty, begins with a dot, or holds a separator or a control character.
    """
    if (
        not part
        or part.startswith(".")
        or any(char in "/\\" or unicodedata.category(char) == "Cc" for char in part)
    ):
        raise StoreError(f"{part!r} cannot be part of a path inside a store.")
    return part


def check_sample_ids(sample_ids: Sequence[str], *, where: str) -> None:
    """Check that ids are unique, non-empty and encodable; those with a ``sha256`` of their own were checked before."""
    if getattr(sample_ids, "sha256", ""):
        return
    if not sample_ids:
        raise SourceError(f"{where}: no samples.")
    # Equal texts have equal hashes: 8 bytes per id where a set of texts takes more than 100.
    hashes = np.fromiter(map(hash, sample_ids), np.int64, len(sample_ids))
    hashes.sort()
    if (hashes[1:] == hashes[:-1]).any() and (repeated := _repeated(sample_ids)):
        raise SourceError(
            f"{where}: {len(repeated)} sample ids occur more than once: {shorten(repeated)}. "
            "Every image needs an id of its own; rename the files or keys."
        )
    odd = [sample_id for sample_id in sample_ids if not _is_text(sample_id)]
    if odd:
        raise SourceError(
            f"{where}: {len(odd)} names are empty, not UTF-8 or hold a zero byte: "
            f"{shorten([repr(name) for name in odd])}. Rename them."
        )


def _repeated(sample_ids: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    repeated: list[str] = []
    for sample_id in sample_ids:
        if sample_id in seen:
            repeated.append(sample_id)
        seen.add(sample_id)
    return repeated


def _is_text(sample_id: str) -> bool:
    if not sample_id or "\0" in sample_id:
        return False
    try:
        return sample_id.isascii() or bool(sample_id.encode())
    except UnicodeEncodeError:
        return False


def ids_sha256(sample_ids: Iterable[str]) -> str:
    """Hash a list of ids in order: SHA-256 over the UTF-8 ids, each followed by a zero byte."""
    if known := str(getattr(sample_ids, "sha256", "")):
        return known
    digest = hashlib.sha256()
    rest = iter(sample_ids)
    while part := list(islice(rest, HASHED_AT_A_TIME)):
        digest.update("\0".join([*part, ""]).encode())
    return digest.hexdigest()


def content_sha256(data: bytes) -> bytes:
    """Hash the bytes of an image file; 32 bytes."""
    return hashlib.sha256(data).digest()


def write_ids(path: Path, sample_ids: Sequence[str]) -> None:
    """Write ids to a text file, one per line."""
    odd = [sample_id for sample_id in sample_ids if len(sample_id.splitlines()) > 1]
    if odd:
        raise ConfigError(f"ids with line breaks cannot be lines of a file: {shorten(odd)}.")
    data = "".join(f"{sample_id}\n" for sample_id in sample_ids).encode()
    if path.exists() and path.read_bytes() != data:
        raise ConfigError(f"{path.absolute()}: exists with other content. Choose another name.")
    write_bytes(path, data)


def read_ids(path: Path) -> list[str]:
    """Read ids of a text file, one per line. Raises ConfigError: the file cannot be read, or is empty."""
    try:
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path.absolute()}: cannot be read as a list of ids ({error})."
        ) from None
    if not found:
        raise ConfigError(f"{path.absolute()}: no ids.")
    return found
