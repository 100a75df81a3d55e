"""Columns and batches of an export, and the interface of its writers."""

# n rows of a batch, V views, T items

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from featstore.errors import ConfigError
from featstore.files.array_types import Array
from featstore.format.fields import Ragged

Kind = Literal["numbers", "text", "ragged"]

ExportBatch = Mapping[str, Array | Ragged]
"""By column: numbers (n, *shape), text (n, *shape) objects, or ragged items with their offsets."""

SAMPLE_ID, ROW, LABEL, VALID, CONTENT = "sample_id", "row", "label", "valid", "content_sha256"
"""Columns that every export has (the label only where the source has labels)."""


@dataclass(frozen=True)
class ExportColumn:
    """One column of an export."""

    name: str  # unique in the export
    kind: Kind  # numbers and text have one size in every row, ragged columns any number of items
    shape: tuple[int, ...] = ()  # of one row; of one item where rows are ragged
    dtype: np.dtype[Any] | None = None  # numpy dtype; None for text
    lists: int = 0  # lists of items that a ragged row has: its views; 0 if it is one list itself
    field: str = ""  # the store's field that it holds; "" if it describes the sample


class Exporter(ABC):
    """Writes the files of one export in the order of rows; resumes from a saved state."""

    def begin(self, part: int) -> None:  # noqa: B027  # some files have no parts
        """Begin the next part: the chosen rows of one shard, if there are any."""

    @abstractmethod
    def add(self, batch: ExportBatch) -> None:
        """Write some rows."""

    def end(self) -> None:  # noqa: B027
        """End the part that was begun."""

    @abstractmethod
    def state(self) -> dict[str, int]:
        """Sync the files, and return the state to resume from after the last finished part."""

    @abstractmethod
    def finish(self) -> None:
        """Write and sync what is known after the last row."""

    @abstractmethod
    def close(self) -> None:
        """Close all files, also in the middle of a part."""


def check_packages(what: str, names: Sequence[str]) -> None:
    """Refuse where an optional package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"{what} needs {name}, which is not installed: pip install 'featstore-distill[hf]'."
            )
