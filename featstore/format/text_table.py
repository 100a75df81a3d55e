"""Text tables: artefacts with one embedding per text, in the space of a teacher's image embeddings."""

# n texts, D width of the embeddings

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Array
from featstore.format.artefacts import pack, pack_texts, unpack_texts
from featstore.format.manifest import Manifest

PREFIX = "texts."  # first part of the name of every artefact that is a text table
EMBEDDING = "embedding"  # name of the tensor beside the texts


@dataclass(frozen=True, eq=False)
class TextTable:
    """Texts, mostly names of classes, and their embeddings in a teacher's space."""

    names: tuple[str, ...]  # (n,) different texts
    embedding: npt.NDArray[np.float32]  # (n, D) float32, rows of length 1

    @property
    def width(self) -> int:
        return int(self.embedding.shape[1])

    @classmethod
    def of(cls, names: Sequence[str], embedding: npt.ArrayLike) -> "TextTable":
        """Check names and numbers, and scale every row to length 1.

        Args:
            names: (n,).
            embedding: (n, D) of any float type.
        """
        rows = np.asarray(embedding)
        if rows.ndim != 2 or rows.dtype.kind not in "fiu" or len(rows) != len(names):
            raise ConfigError(
                f"text table: embeddings are {rows.dtype} of shape {rows.shape}; expected {len(names)} rows of "
                "numbers, one for each name."
            )
        counts = Counter(names)
        repeated = sorted(name for name, count in counts.items() if count > 1 or not name)
        if repeated or not counts:
            raise ConfigError(
                f"text table: names repeat or are empty: {shorten(repeated) or 'no names'}."
            )
        rows = rows.astype(np.float32)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        unusable = np.flatnonzero(~(np.isfinite(length[:, 0]) & (length[:, 0] > 0))).tolist()
        if unusable:
            raise ConfigError(
                f"text table: embeddings of {shorten([names[row] for row in unusable])} are zero or not finite."
            )
        return cls(tuple(names), rows / length)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> "TextTable":
        """The table of an artefact. Raises ConfigError: the artefact is no text table."""
        if EMBEDDING not in tensors:
            raise ConfigError(f"no text table: it has no tensor {EMBEDDING!r}.")
        return cls.of(unpack_texts(tensors), tensors[EMBEDDING])

    def rows_of(self, names: Sequence[str]) -> list[int]:
        """Rows of some names. Raises ConfigError: names that the table lacks."""
        row = {name: index for index, name in enumerate(self.names)}
        missing = [name for name in names if name not in row]
        if missing:
            raise ConfigError(
                f"text table: has no text for {len(missing)} of {len(names)} classes: {shorten(missing)}. It has "
                f"{len(self.names)} texts: {shorten(list(self.names))}."
            )
        return [row[name] for name in names]

    def to_bytes(self) -> bytes:
        """The artefact's file."""
        return pack({**pack_texts(self.names), EMBEDDING: self.embedding})


def artefact_name(name: str) -> str:
    """Name of the artefact of a table."""
    return name if PREFIX in name else PREFIX + name


def meaning_of(names: Sequence[str], field: str, origin: str) -> str:
    """Record of a table in the manifest: the field in whose space its texts are, and how they were embedded."""
    return f'{len(names)} texts in the space of field "{field}": {origin}'


def tables_of(manifest: Manifest) -> list[str]:
    """Names of all artefacts that are text tables; merging puts a prefix before them."""
    return sorted(name for name in manifest.artefacts if PREFIX in name)
