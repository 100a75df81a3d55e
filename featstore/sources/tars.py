"""WebDataset tars: headers are read once to list the samples, bytes by position afterwards.

Members of one tar whose paths agree up to the first dot of the file name form a sample. Nothing is
ever unpacked. How tars are walked is here; what a picture is, is not.

The package webdataset is not used here, nor for tars behind URLs: it reads tars as a stream, so it can
neither list the ids without reading every byte nor give the image of one row. A tar of 2,000 images of
100 kB in memory: listing 0.15 s against 0.50 s, the image of row 1,990 0.1 ms against 480 ms; over a
network of 1 Gbit/s listing would take the 1.6 s of the whole tar, and each shard that is resumed again.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from featstore.errors import SourceError, shorten
from featstore.files.tar_headers import (
    BLOCK_BYTES,
    BadTar,
    CutMember,
    Member,
    NoHeader,
    SparseFile,
    members,
)
from featstore.sources.base import (
    HEIF_HINT,
    HEIF_SUFFIXES,
    NO_LABEL,
    has_heif,
    image_suffixes,
    suffix_of,
)
from featstore.sources.find_files import compressed_beside, unreadable
from featstore.sources.labels import check_labels
from featstore.sources.listed_files import ListedFiles
from featstore.sources.listing import FileListing, Ids
from featstore.sources.source_files import SourceFile

MAX_LABEL_BYTES = 64

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
"""First bytes of compressed files, and the program that decompresses them."""

ALLOW_CUT = "--source.allow_cut_tars true"

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
"""WebDataset's rule: the key ends at the first dot of the file name, the extension follows."""

_CLASS = re.compile(rb"\s*(-?[0-9]{1,18})\s*")

UNREAD_IMAGES = frozenset(
    (".img", ".image", ".jxl", ".svg", ".tga", ".psd", ".exr", ".dng", ".nef", ".cr2", ".raw")
)
"""Endings of members that are or may be images, and are not read unless ``image_member`` names them."""

Array = npt.NDArray[np.int64]


class TarSource(ListedFiles):
    """Samples of one or many plain tars, in the order of the tars' names and of their members.

    The id of a sample is ``<tar>/<key>``, where ``<tar>`` is the tar's path without ``.tar``, below
    the folder named by ``path`` (up to the first wildcard or brace). The class is the integer in
    the member ``<key>.cls``.

    Args:
        path: a folder of ``*.tar``, one tar, a glob, or a brace pattern (``{000000..000099}``).
        allow_cut_tars: take the complete samples of a tar that breaks off; ``notes`` says which.
        image_member: extension of the member that is the image, such as "jpg" or "seg.png"; "" for any image.

    Raises:
        SourceError: no such tars, or one that is compressed, broken, hostile or without samples.
    """

    def __init__(self, path: str, *, allow_cut_tars: bool = False, image_member: str = "") -> None:
        self.kind = "tars"
        self._allow_cut, self._image_member = allow_cut_tars, image_member
        notes = [] if "://" in path else compressed_beside(path)
        key = (image_member, allow_cut_tars, sorted(image_suffixes()))
        tars = self._list_files(path, suffix=".tar", key=key)
        self.notes = notes + self.notes
        self.tars = [(tar.name, len(tar.ids)) for tar in tars if len(tar.ids)]
        if not self.sample_ids:
            raise SourceError(f"{path}: no complete sample in any tar. " + " ".join(self.notes))
        labels = np.concatenate([tar.labels for tar in tars])
        self.labels, self.class_names = check_labels(labels, where=path, notes=self.notes)

    def _list(self, name: str, file: SourceFile) -> FileListing:
        scan = _scan(file, allow_cut=self._allow_cut, image_member=self._image_member)
        ids = Ids.of([f"{name}/{key}" for key in scan.images])
        return FileListing(name, file.stamp, ids, scan.spans(), scan.label_array(), scan.notes)

    def read(self, row: int) -> bytes:
        """Return the bytes of one image; safe to call from several threads.

        Raises:
            OSError: the tar became shorter.
            SourceError: it was replaced since it was listed, or its server refuses.
        """
        offset, size = (int(value) for value in self._spans[row])
        file = self._handle(self._file_of(row))
        parts = []
        while size:
            part = file.pread(size, offset)
            if not part:
                raise OSError(
                    f"{file.name}: ends at byte {offset}, {size} bytes of "
                    f"{self.sample_ids[row]} are missing; the tar was changed since it was listed"
                )
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Break(Exception):
    """A tar breaks off: no whole member can be read from a byte offset on."""

    def __init__(self, offset: int, reason: str, member: str | None = None) -> None:
        super().__init__(reason)
        self.offset = offset
        self.member = member


def is_image(extension: str, image_member: str) -> bool:
    """Return whether the member of a sample is its image.

    Args:
        extension: of the member, after the key, in lower case.
        image_member: the only extension that counts; "" for every ending of an image.
    """
    if image_member:
        return extension == image_member.lower().removeprefix(".")
    return suffix_of(f".{extension}") in image_suffixes()


def several_images(tar: Path | str, key: str, member: str) -> SourceError:
    """Return the error for a sample with several members that could be its image."""
    return SourceError(
        f"{tar}: sample {key!r} has several images, the second is {member!r}; expected one image for each key. Name "
        "the extension of the image with --source.image_member (such as jpg), or write every image under a key of "
        "its own."
    )


class _Scan:
    """The samples of one tar: images and labels by key, in the order of the members."""

    def __init__(self, tar: str, image_member: str) -> None:
        self.tar = tar
        self.image_member = image_member
        self.images: dict[str, tuple[int, int]] = {}
        self.labels: dict[str, int] = {}
        self.notes: list[str] = []
        # Classes by key and by what lies between the key and ".cls": the class of 22.05.jpg is 22.05.cls.
        self._classes: dict[tuple[str, str], int] = {}
        self._between: dict[str, str] = {}
        # Where members are, for hard links to them.
        self._members: dict[str, tuple[int, int]] = {}
        self._without: dict[str, set[str]] = {}
        self._links: list[str] = []
        # Extensions of the sample that is being read and of the one before, to see what a cut took.
        self._key = ""
        self._extensions: set[str] = set()
        self._before: set[str] = set()

    def add(self, member: Member, file: BinaryIO) -> None:
        """Take one member; of links, those to an earlier file of the same tar."""
        found = split_name(member.name)
        if found is None or member.folder:
            return
        span = (member.data, member.size)
        if member.link.removeprefix("./") in self._members:
            span = self._members[member.link.removeprefix("./")]
        elif not member.regular:
            self._links.append(member.name)
            return
        key, extension = found
        self._open_sample(key)
        self._extensions.add(extension)
        between, _, last = extension.rpartition(".")
        image = is_image(extension, self.image_member)
        if image or last == "cls":
            self._members[member.name.removeprefix("./")] = span
        if image:
            if key in self.images:
                raise several_images(self.tar, key, member.name)
            self.images[key] = span
            if between:
                self._between[key] = between
        elif last == "cls":
            self._classes[key, between] = self._read_label(member.name, span, file)

    def _open_sample(self, key: str) -> None:
        if key != self._key:
            self._close_sample()
            self._key, self._before, self._extensions = key, self._extensions, set()

    def _close_sample(self) -> None:
        if self._key and self._key not in self.images:
            self._without.setdefault(self._key, set()).update(self._extensions)

    def _read_label(self, name: str, span: tuple[int, int], file: BinaryIO) -> int:
        offset, size = span
        file.seek(offset)
        text = file.read(min(size, MAX_LABEL_BYTES))
        number = _CLASS.fullmatch(text)
        if number is None or size > MAX_LABEL_BYTES:
            raise SourceError(
                f"{self.tar}: {name} holds {text[:20]!r}; expected the class as an integer "
                "in text, 0 or more (-1 if unknown). Write the tar again."
            )
        return int(number[1])

    def drop_cut_sample(self, member: str | None) -> None:
        """Drop the sample that is cut off.

        Args:
            member: the member whose bytes are not all there, None if its name is lost. In that case
                the last sample counts as whole if it has every part that the one before it has.
        """
        found = split_name(member) if member is not None else None
        if found is not None:
            key = found[0]
        elif self._before and self._before <= self._extensions:
            return
        else:
            key = self._key
        self.images.pop(key, None)
        if key == self._key:
            self._key = ""

    def finish(self) -> None:
        """Match classes to images, and note what was left out."""
        self._close_sample()
        for (key, between), label in self._classes.items():
            if between == self._between.get(key, "") or not between:
                self.labels.setdefault(key, label)
            if between and between == self._between.get(key):
                self.labels[key] = label  # of the image's own name, rather than of the key alone
        without = {key: kinds for key, kinds in self._without.items() if key not in self.images}
        if without:
            named = [f"{key} ({', '.join(sorted(kinds))})" for key, kinds in without.items()]
            kinds = {suffix_of(f".{kind}") for kinds in without.values() for kind in kinds}
            heif = f" {HEIF_HINT}." if kinds & HEIF_SUFFIXES and not has_heif() else ""
            option = " Name the extension of the image with --source.image_member." * bool(
                kinds & UNREAD_IMAGES
            )
            self.notes.append(
                f"{self.tar}: {len(without)} keys have no image that is read and were left out: {shorten(named)}."
                f"{heif}{option}"
            )
        if self._links:
            self.notes.append(
                f"{self.tar}: {len(self._links)} members are links to something else than an earlier file of this tar, "
                f"or no files, and were left out: {shorten(self._links)}."
            )
        self._classes, self._members, self._without = {}, {}, {}

    def spans(self) -> Array:
        """(n, 2) offset and size of each image, bytes."""
        return np.array(list(self.images.values()), dtype=np.int64).reshape(-1, 2)

    def label_array(self) -> Array:
        """(n,) class of each image."""
        return np.array([self.labels.get(key, NO_LABEL) for key in self.images], dtype=np.int64)


def split_name(name: str) -> tuple[str, str] | None:
    """Return (key, extension in lower case) of a member, None if it belongs to no sample."""
    name = name.removeprefix("./")
    match = _KEY.fullmatch(name)
    if match is None or name.startswith("__MACOSX/"):
        return None
    return match[1], match[2].lower()


def _scan(opened: SourceFile, *, allow_cut: bool, image_member: str) -> _Scan:
    tar = opened.name
    scan = _Scan(tar, image_member)
    try:
        with opened.buffered() as file:
            _refuse_compressed(tar, file)
            try:
                for member in _members(opened, file, scan.notes):
                    _refuse_hostile(tar, member)
                    scan.add(member, file)
            except _Break as error:
                _take_cut(scan, error, allow_cut=allow_cut)
                scan.finish()
                return scan
    except OSError as error:
        raise unreadable(tar, error) from error
    scan.finish()
    if not scan.images:
        wanted = image_member or " ".join(sorted(image_suffixes()))
        raise SourceError(
            f"{tar}: no sample with an image in this tar. Expected members like 000001.jpg (one of {wanted}). "
            f"{' '.join(scan.notes)} Leave it out of --source.path."
        )
    return scan


def _take_cut(scan: _Scan, error: _Break, *, allow_cut: bool) -> None:
    scan.drop_cut_sample(error.member)
    found = (
        f"{scan.tar}: breaks off at byte {error.offset} ({error}), "
        f"after {len(scan.images)} complete samples"
    )
    if not allow_cut:
        advice = "take those" if scan.images else "pass over it"
        raise SourceError(f"{found}. Fetch the tar again; or {advice} with {ALLOW_CUT}.") from error
    scan.notes.append(f"{found}; those were taken, all after them are missing.")


def _refuse_compressed(tar: str, file: BinaryIO) -> None:
    start = file.read(8)
    file.seek(0)
    for magic, program in COMPRESSED.items():
        if start.startswith(magic):
            raise SourceError(
                f"{tar}: compressed with {program}; images are read by position, which needs a "
                "plain tar. Unpack it once (the images in it are compressed already)."
            )


def _refuse_hostile(tar: str, member: Member) -> None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise SourceError(
            f"{tar}: member {member.name!r} points outside of the archive; expected relative "
            "paths without '..'. Do not use a tar that you do not trust."
        )


def _members(tar: SourceFile, file: BinaryIO, notes: list[str]) -> Iterator[Member]:
    """Yield the members that are complete."""

    def read(start: int, stop: int) -> bytes:
        file.seek(start)
        return file.read(stop - start)

    end = 0
    try:
        for member in members(read, 0, tar.size):
            end = member.end
            yield member
    except SparseFile as error:
        raise SourceError(f"{tar.name}: {error}. Write the tar again without --sparse.") from None
    except CutMember as error:
        raise _Break(tar.size, f"inside member {error.member!r}", error.member) from None
    except BadTar as error:
        if isinstance(error, NoHeader) and error.at == 0:
            raise SourceError(
                f"{tar.name}: not a tar (first bytes {tar.pread(8, 0)!r}; {error}). Leave it out of --source.path, or "
                "fetch it again: a failed download often is a page of HTML."
            ) from None
    _check_end(tar, end, notes)


def _check_end(tar: SourceFile, end: int, notes: list[str]) -> None:
    """Check that only zeros follow the last member."""
    size = tar.size
    if size == 0:
        raise _Break(0, "the file is empty")
    if end >= size:
        notes.append(
            f"{tar.name}: has no end-of-archive mark. All its members are whole, but if it was cut "
            "exactly between two of them, the rest is missing."
        )
        return
    block = tar.pread(BLOCK_BYTES, end)
    if block.strip(b"\0"):
        whole = len(block) == BLOCK_BYTES
        raise _Break(end, "no whole tar header there" if whole else "inside a tar header")
    position = end
    while chunk := tar.pread(1 << 20, position):
        if chunk.strip(b"\0"):
            place = position + len(chunk) - len(chunk.lstrip(b"\0"))
            raise _Break(
                place, "data after the end-of-archive mark, as when tars are joined with cat"
            )
        position += len(chunk)
