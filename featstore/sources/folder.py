"""Image files or point clouds below a folder, on a disk or behind a URL; the relative path is the sample id."""

import errno
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from featstore.errors import RemoteNotFound, SourceError, shorten
from featstore.sources.base import (
    HEIF_HINT,
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    NO_LABEL,
    Source,
    image_suffixes,
    suffix_of,
)
from featstore.sources.points import POINT_SUFFIXES
from featstore.sources.source_files import remote_refusals

if TYPE_CHECKING:
    from featstore.places.base import Place

LabelsFrom = Literal["parent", "top", "none"]

MOST_BYTES = 2**30
"""Longest file that is read from a URL."""

SKIPPED_FOLDERS = frozenset(("__MACOSX",))
"""Folders made by archivers; the "images" in them are resource forks."""


class FolderSource(Source):
    """Every image file below a folder, sorted by relative path with forward slashes.

    A file counts as an image by its suffix; what is in it shows when it is decoded. Hidden files
    and folders are skipped and links to folders are not followed (a loop would never end).

    Args:
        labels_from: the class is the name of the folder of an image (``parent``), of the
            topmost one (``top``), or there is none; an image in ``path`` itself has no class.

    Raises:
        SourceError: not a readable folder, or no images in it.
    """

    kind = "folder"
    noun = "images"

    def __init__(self, path: str, *, labels_from: LabelsFrom = "parent") -> None:
        self.uri = path
        self._place = _place_of(path) if "://" in path else None
        listing = _Listing(self.noun, self.suffixes())
        if self._place is not None:
            with remote_refusals(path):
                listing.take(self._place.sizes())
        else:
            self._root = Path(path).absolute()
            _check_folder(path, self._root, self.noun)
            listing.walk(self._root)
        if not listing.images:
            raise SourceError(_none_found(path, listing))
        self.sample_ids = sorted(listing.images)
        self.labels, self.class_names = _labels(self.sample_ids, labels_from)
        self.labels_refused = labels_from == "none"
        self.notes = listing.notes(path)

    def read(self, row: int) -> bytes:
        name = self.sample_ids[row]
        if self._place is None:
            return (self._root / name).read_bytes()
        try:
            with remote_refusals(f"{self.uri}/{name}"):
                return self._place.read(name, most_bytes=MOST_BYTES)
        except SourceError as error:
            if isinstance(error.__cause__, RemoteNotFound):
                raise FileNotFoundError(errno.ENOENT, "no such file", name) from error
            raise

    @staticmethod
    def suffixes() -> frozenset[str]:
        """Endings of the files that are samples, in lower case, with the dot."""
        return image_suffixes()


class PointsSource(FolderSource):
    """Every file of a point cloud below a folder: .npy, .bin (KITTI), .ply; as ``FolderSource`` otherwise."""

    kind = "points"
    noun = "point clouds"

    @staticmethod
    def suffixes() -> frozenset[str]:
        return POINT_SUFFIXES


class _Listing:
    """Samples and other files found by walking a folder."""

    def __init__(self, noun: str, suffixes: frozenset[str]) -> None:
        self.noun = noun
        self.suffixes = suffixes
        self.images: list[str] = []
        self.others: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.linked_folders: list[str] = []

    def walk(self, root: Path) -> None:
        """Visit all folders; scandir knows an entry's type without a further system call."""
        pending = [""]
        while pending:
            prefix = pending.pop()
            try:
                with os.scandir(root / prefix) as entries:
                    for entry in entries:
                        self._add(entry, prefix + entry.name, pending)
            except OSError as error:
                raise SourceError(
                    f"{root / prefix}: the folder cannot be listed: {error.strerror or error}. "
                    f"{self.noun.capitalize()} in it would be missing from the store; make it readable or move it out."
                ) from error

    def take(self, names: Iterable[str]) -> None:
        """Take the names of all files below a URL."""
        for name in names:
            parts = name.split("/")
            if any(part.startswith(".") or part in SKIPPED_FOLDERS for part in parts):
                continue
            suffix = suffix_of(parts[-1])
            if suffix in self.suffixes:
                self.images.append(name)
            else:
                self.others[suffix] += 1
                self.examples.setdefault(suffix, name)

    def _add(self, entry: os.DirEntry[str], relative: str, pending: list[str]) -> None:
        if entry.name.startswith(".") or entry.name in SKIPPED_FOLDERS:
            return
        if entry.is_dir(follow_symlinks=False):
            pending.append(relative + "/")
        elif entry.is_dir():
            self.linked_folders.append(relative)
        elif suffix_of(entry.name) not in self.suffixes:
            suffix = suffix_of(entry.name)
            self.others[suffix] += 1
            self.examples.setdefault(suffix, relative)
        elif entry.is_file() or entry.is_symlink():
            # A broken link is listed: it becomes an invalid row with a reason.
            self.images.append(relative)
        else:
            self.others["(pipes, sockets or devices)"] += 1

    def notes(self, path: str) -> list[str]:
        notes = []
        if self.others:
            named = shorten(
                [
                    self.examples[suffix]
                    for suffix, _ in self.others.most_common()
                    if suffix in self.examples
                ]
            )
            notes.append(
                f"{path}: left out {_count(self.others)}, not {self.noun} by name: {named}."
            )
        if self.others.keys() & HEIF_SUFFIXES and self.suffixes & IMAGE_SUFFIXES:
            notes.append(f"{path}: {HEIF_HINT}.")
        if self.others[""] and self.suffixes & IMAGE_SUFFIXES:
            notes.append(
                f"{path}: {self.others['']:,} files without a suffix were left out, e.g. {self.examples['']}. If they "
                "are images, give them one (.jpg), or put them into tars (--source.kind tars)."
            )
        if self.linked_folders:
            notes.append(
                f"{path}: {len(self.linked_folders)} links to folders were not followed: "
                f"{shorten(sorted(self.linked_folders))}."
            )
        return notes


def _place_of(url: str) -> "Place":
    from featstore.places.open_place import open_place

    place = open_place(url.rstrip("/"))
    if not place.lists:
        raise SourceError(
            f"{url}: this server has no listing. Put the images into tars and name these with braces "
            "(--source.kind tars), or fetch them."
        )
    return place


def _check_folder(path: str, root: Path, noun: str) -> None:
    if root.is_dir():
        return
    if not root.exists():
        parents = (parent for parent in root.parents if parent.is_dir())
        raise SourceError(
            f"{path}: no such folder (the path exists up to {next(parents)}). "
            f"Set --source.path to the folder that holds the {noun}."
        )
    kind = "A tar is read with --source.kind tars." if root.suffix == ".tar" else ""
    raise SourceError(
        f"{path}: found a file, expected a folder of {noun}. {kind or 'Name the folder it is in.'}"
    )


def _none_found(path: str, listing: _Listing) -> str:
    others, noun, images = listing.others, listing.noun, listing.suffixes & IMAGE_SUFFIXES
    found = f"found {_count(others)}, none of {noun}" if others else "the folder is empty"
    heif = f" {HEIF_HINT}." if images and others.keys() & HEIF_SUFFIXES else ""
    tars = ", or use --source.kind tars" if images and ".tar" in others else ""
    points = ", or use --source.kind points" if images and others.keys() & POINT_SUFFIXES else ""
    return (
        f"{path}: {found} (hidden ones do not count).{heif} Expected files ending in "
        f"{' '.join(sorted(listing.suffixes))}. Set --source.path to the folder that holds the {noun}{tars}{points}."
    )


def _count(others: Counter[str]) -> str:
    kinds = [f"{number:,} {suffix or 'without suffix'}" for suffix, number in others.most_common()]
    total = others.total()
    return f"{total:,} file{'s' if total > 1 else ''} ({shorten(kinds)})"


def _labels(
    sample_ids: list[str], labels_from: LabelsFrom
) -> tuple[npt.NDArray[np.int64] | None, tuple[str, ...]]:
    if labels_from == "none":
        return None, ()
    folder = -2 if labels_from == "parent" else 0
    names = [
        parts[folder] if len(parts := sample_id.split("/")) > 1 else None
        for sample_id in sample_ids
    ]
    class_names = tuple(sorted({name for name in names if name is not None}))
    if not class_names:
        return None, ()
    index: dict[str | None, int] = {name: number for number, name in enumerate(class_names)}
    index[None] = NO_LABEL
    return np.array([index[name] for name in names], dtype=np.int64), class_names
