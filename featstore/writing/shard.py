"""A shard in memory, and its ledger entry."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featstore.containers.base import Backend
from featstore.files.array_types import Array
from featstore.format.ledger import InvalidRow, ObjectRecord, ShardRecord


@dataclass
class Shard:
    """A shard in memory, ready to be committed.

    Attributes:
        columns: Columns by name, (rows, *shape) each.
        reasons: Reason of each invalid row, None for valid ones.
        seconds: Time spent so far, by part.
    """

    number: int
    columns: dict[str, Array]
    reasons: Sequence[str | None]
    seconds: dict[str, float]


def entry_record(
    backend: Backend, shard: Shard, objects: dict[str, ObjectRecord], *, write_s: float
) -> ShardRecord:
    """Ledger entry of a shard whose objects are written."""
    rows = backend.manifest.shard_range(shard.number)
    invalid = tuple(
        InvalidRow(row=rows.start + i, sample_id=str(shard.columns["sample_id"][i]), reason=reason)
        for i, reason in enumerate(shard.reasons)
        if reason is not None
    )
    seconds = {**shard.seconds, "write": write_s}
    return ShardRecord(
        shard=shard.number,
        rows=(rows.start, rows.stop),
        objects=objects,
        invalid=invalid,
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )


def text_column(values: Sequence[str]) -> Array:
    """Texts as an object array, which backends expect."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
