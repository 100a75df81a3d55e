"""Base class of sources: an ordered list of sample ids, and the bytes of each image, text or point cloud."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

NO_LABEL = -1  # label of a sample whose class is not known

IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".avif",
        ".jp2",
    )
)


HEIF_SUFFIXES = frozenset((".heic", ".heif"))
HEIF_HINT = (
    "HEIC pictures are read with the package pillow-heif: pip install 'featstore-distill[heif]'"
)


@cache
def has_heif() -> bool:
    """Whether the package that reads HEIC is installed."""
    return find_spec("pillow_heif") is not None


def image_suffixes() -> frozenset[str]:
    """Endings of the files that are taken as images here, in lower case, with the dot."""
    return IMAGE_SUFFIXES | HEIF_SUFFIXES if has_heif() else IMAGE_SUFFIXES


class Source(ABC):
    """Images, texts or point clouds of one origin. Picklable, so that loader processes can read; cheap to copy.

    Attributes:
        kind: name of the kind, as in ``SourceConfig.kind``.
        uri: where the images are, as the user wrote it.
        sample_ids: unique, stable, in the order of the store's rows.
        labels: (N,) int64 class indices, ``NO_LABEL`` where unknown; None if no sample has one.
        class_names: names of the classes, by index; empty if unknown.
        label_sets: (N, C) int8 where images have several labels: 1 has it, 0 has it not, -1 unknown; ``labels`` is None
            then.
        labels_refused: the user asked for no labels, so that those of a store must not be used either.
        languages: language of each sample, where samples are texts that name one; else empty.
        pairs: what translations of each other share, where samples are texts that name it; else empty.
        images: id of the image that each describes, where samples are texts that name one; else empty.
        tars: (name, samples) of each tar, in order, where samples are in tars; those of one tar are consecutive.
        content_sha256: (N, 32) of the original files where ``read`` returns copies of them; else None.
        artefacts: meaning and bytes of files that a store of these samples keeps, by name.
        fixed_size: (height, width) of all pictures where no other size may be made of them; else None.
        notes: sentences for the user about this source, e.g. a tar that was taken in part.
    """

    kind: str
    uri: str
    sample_ids: Sequence[str]
    labels: npt.NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    label_sets: npt.NDArray[np.int8] | None = None
    labels_refused: bool = False
    languages: Sequence[str] = ()
    pairs: Sequence[str] = ()
    images: Sequence[str] = ()
    tars: Sequence[tuple[str, int]] = ()
    content_sha256: npt.NDArray[np.uint8] | None = None
    artefacts: dict[str, tuple[str, bytes]] = {}  # noqa: RUF012 - as notes
    fixed_size: tuple[int, int] | None = None
    notes: list[str] = []  # noqa: RUF012 - a subclass assigns its own list, nothing appends here

    def __len__(self) -> int:
        return len(self.sample_ids)

    @abstractmethod
    def read(self, row: int) -> bytes:
        """Return the bytes of one file, or of one text.

        Raises:
            OSError: The file cannot be read. The caller retries or marks the row invalid (``featstore.sources.load``).
        """


def suffix_of(name: str) -> str:
    """Return the part from the last dot of a file name on, in lower case; "" if there is none."""
    _, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot else ""


def matches(sample_id: str, patterns: Sequence[str]) -> bool:
    """Return whether any shell pattern matches the whole id; ``*`` also spans slashes."""
    return any(fnmatchcase(sample_id, pattern) for pattern in patterns)
