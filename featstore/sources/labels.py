"""Class numbers as sources have them, made into classes from 0 on; what cannot be a class is named."""

import numpy as np
import numpy.typing as npt

from featstore.errors import SourceError, shorten
from featstore.sources.base import NO_LABEL

MOST_CLASSES = 100_000  # more different numbers than this are ids of images, not classes
SPARSE = 10  # numbers are ids where the largest is this many times their count, and above ``DENSE``
DENSE = 9_999

IGNORED = 255  # the usual number for "no class" in 8 bits

Labels = npt.NDArray[np.int64]


def check_labels(
    labels: Labels, *, where: str, notes: list[str]
) -> tuple[Labels | None, tuple[str, ...]]:
    """Make class numbers of a source without class names fit for a store.

    Negative numbers, and 255 far above all others, mean that the class is not known. Numbers that are ids (5000000001)
    are renumbered from 0 on in ascending order, and their text becomes the name of the class; others are kept.

    Args:
        labels: (N,) as the source has them.
        notes: gets a sentence for each change.

    Returns:
        (N,) classes, None if no class is known; and names of the classes, empty where numbers were kept.
    """
    labels = ignore_negative(labels, where=where, notes=notes)
    values, counts = np.unique(labels[labels != NO_LABEL], return_counts=True)
    if len(values) > 1 and values[-1] == IGNORED and values[-2] < IGNORED - 1:
        notes.append(
            f"{where}: {counts[-1]:,} images have the class {IGNORED}, far above the next one ({values[-2]}): taken as "
            "images without a class."
        )
        labels = np.where(labels == IGNORED, NO_LABEL, labels)
        values = values[:-1]
    if not len(values):
        return None, ()
    if values[-1] <= max(DENSE, SPARSE * len(values)):
        return labels, ()
    if len(values) > MOST_CLASSES:
        raise SourceError(
            f"{where}: {len(values):,} different class numbers up to {values[-1]:,} among {len(labels):,} images: "
            "these are ids, not classes. Leave the labels out (folder: --source.labels_from none; hf: another "
            "--source.label_column; tars: no .cls)."
        )
    notes.append(
        f"{where}: class numbers up to {values[-1]:,} are ids; the {len(values):,} classes are numbered from 0 on and "
        f"named by them: {shorten(values.tolist())}."
    )
    numbers = np.searchsorted(values, labels)
    return np.where(labels == NO_LABEL, NO_LABEL, numbers), tuple(map(str, values.tolist()))


def ignore_negative(labels: Labels, *, where: str, notes: list[str]) -> Labels:
    """Take negative numbers as "no class"; a note names those that are not -1."""
    negative = labels < 0
    odd = np.unique(labels[negative & (labels != NO_LABEL)])
    if len(odd):
        notes.append(
            f"{where}: {int(np.isin(labels, odd).sum()):,} images have the negative class {shorten(odd.tolist())}: "
            "taken as images without a class."
        )
    return np.where(negative, NO_LABEL, labels)
