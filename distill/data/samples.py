"""The images that take part in a run, and the parts into which a run cuts them."""

# n samples that take part

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featstore.sources.base import Source

Indices = npt.NDArray[np.int64]

NO_ROW = -1  # row of a sample when there is no store


@dataclass(frozen=True)
class Samples:
    """The images that take part, with their rows, ids, hashes and labels."""

    source: Source  # source of the bytes
    positions: Indices  # (n,) index in the source
    rows: Indices  # (n,) row in the store; ``NO_ROW`` without a store, and of images that need none
    ids: list[str]  # (n,) sample ids in the source
    stored_ids: list[str]  # (n,) ids in the store; a seeded view depends on this one
    # (n, 32) SHA-256 that the bytes must have; None without a store
    hashes: npt.NDArray[np.uint8] | None
    labels: Indices  # (n,) class, or ``NO_LABEL``
    class_names: tuple[str, ...]  # names by class; decimal numbers if there are none
    groups: dict[str, Indices]  # by part, indices of the samples that match its patterns
    notes: list[str]  # notes for the user, e.g. how many rows were dropped
    other_rows: tuple[Indices, ...] = ()  # (n,) rows in each further store

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Split:
    """The parts of one run, as indices into ``Samples``."""

    labelled: Indices  # D_L, images with a label that may be used
    unlabelled: Indices  # D_U, further images; none of them is in ``labelled``
    test: Indices  # held-out images with a label
    notes: list[str] = field(default_factory=list)  # notes for the user
    # further images with a label, in no other part, to choose settings by
    validation: Indices = field(default_factory=lambda: np.empty(0, np.int64))
