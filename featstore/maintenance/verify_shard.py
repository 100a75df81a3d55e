"""Check one shard: its ledger entry, every block of its objects, and the values of its columns."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from featstore.containers.base import Backend
from featstore.containers.block_checksums import damaged_blocks, why_unreadable
from featstore.errors import ShardCorrupt, StoreError, command, shorten
from featstore.files.array_types import Array
from featstore.files.untrusted import plain_size
from featstore.format.ledger import (
    ObjectRecord,
    ShardRecord,
    entry_name,
    entry_path,
    read_entry,
)
from featstore.maintenance.verify_values import ShardRules

Kind = Literal["shard", "metadata", "mark", "manifest", "artefact", "ledger"]

MENDABLE = ("shard", "metadata", "mark")  # kinds of damage that ``repair`` can undo

_DIGITS = re.compile(r"(?<=/)[0-9]{1,18}(?=[/.]|$)")

_AGAIN = "pull or copy the store again, or extract it again into a new folder"

_PULL = f"for a pulled store, the same featstore pull again fetches it; for your own, {command('extract')} --repair"

ADVICE: dict[Kind, str] = {
    "shard": f"{_PULL} makes this shard again",
    "metadata": f"{_PULL} writes this file again",
    "mark": f"{_PULL} writes this file again",
    "manifest": _AGAIN,
    "artefact": _AGAIN,
    "ledger": _AGAIN,
}


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something in a store that is not as it was written, or contradicts another part."""

    kind: Kind  # which part; it decides what can be done
    problem: str
    object: str = ""  # path of the file inside the store; "" if it is about more than one
    shard: int | None = None  # number of the shard, if it is about one
    column: str = ""  # name of the column, if it is about one
    rows: range | None = None  # rows of the store, if it is about some
    remedy: str = ""  # what to do about it, where it differs from ``ADVICE`` of its kind

    @property
    def advice(self) -> str:
        """What to do about it."""
        return self.remedy or ADVICE[self.kind]

    def __str__(self) -> str:
        """One line: shard, rows, column, file, what is wrong, what to do."""
        parts = []
        if self.shard is not None:
            where = f"shard {self.shard}"
            if self.rows is not None and len(self.rows):
                where += f" (rows {self.rows.start}-{self.rows.stop - 1})"
            parts.append(where + (f', column "{self.column}"' if self.column else ""))
        if self.object:
            parts.append(self.object)
        return ": ".join([*parts, self.problem]) + f"; {self.advice}"


@dataclass
class ShardFindings:
    """Findings of one shard."""

    shard: int
    damages: list[Damage] = field(default_factory=list)
    entry: ShardRecord | None = None  # its ledger entry, if that is sound
    ids: list[str] | None = None  # sample ids of its rows, if they are sound
    # those that are not safe as file names or on a terminal
    odd_ids: list[str] = field(default_factory=list)
    unbound: int = 0  # valid rows without a content hash
    # blocks, bytes: how many were compared with their checksums
    blocks: int = 0
    bytes: int = 0


def examine_shard(backend: Backend, shard: int) -> ShardFindings:
    """Check everything in one shard; one column at a time is in memory."""
    found = ShardFindings(shard)
    found.damages += check_entry(backend, shard, found)
    if found.entry is None:
        return found
    names = set(backend.object_names(shard))
    for name, record in sorted(found.entry.objects.items()):
        if name not in names:
            continue
        found.damages += check_object(backend, shard, name, record)
        found.blocks += record.num_blocks
        found.bytes += record.bytes
    _check_columns(backend, found)
    return found


def check_entry(backend: Backend, shard: int, found: ShardFindings) -> list[Damage]:
    """Check a ledger entry against the manifest; it is stored in ``found`` if it can be used."""
    rows = backend.manifest.shard_range(shard)
    path = entry_path(backend.store, shard)
    where = path.relative_to(backend.store).as_posix()

    def damage(problem: str) -> Damage:
        return Damage(kind="shard", problem=problem, object=where, shard=shard, rows=rows)

    try:
        entry = read_entry(backend.store, shard)
    except ShardCorrupt as error:
        return [damage(problem_of(error, path))]
    if entry.rows != (rows.start, rows.stop):
        first, last = entry.rows
        return [damage(f"rows {first}-{last - 1}, expected {rows.start}-{rows.stop - 1}")]
    names = backend.object_names(shard)
    damages = []
    if missing := sorted(set(names) - entry.objects.keys()):
        damages.append(damage(f"the entry lacks {shorten(missing)}"))
    if foreign := sorted(entry.objects.keys() - set(names)):
        damages.append(damage(f"the entry lists what no shard has: {shorten(foreign)}"))
    found.entry = entry
    return damages


def check_object(
    backend: Backend, shard: int, name: str, record: ObjectRecord, blocks: range | None = None
) -> list[Damage]:
    """Compare size and blocks of one object with the ledger.

    Args:
        blocks: which blocks; all if not given.
    """
    path = backend.store / name
    try:
        size = plain_size(backend.store, name)
    except OSError as error:
        return [_object_damage(backend, shard, name, 0, why_unreadable(error))]
    if size != record.bytes:
        found = f"{size:,} bytes, expected {record.bytes:,}"
        return [_object_damage(backend, shard, name, max(0, min(size, record.bytes - 1)), found)]
    wanted = range(record.num_blocks) if blocks is None else blocks
    return [
        _object_damage(backend, shard, name, start, problem, stop)
        for start, stop, problem in _runs(record, path, wanted)
    ]


def _runs(record: ObjectRecord, path: Path, blocks: range) -> Iterator[tuple[int, int, str]]:
    """Join adjacent damaged blocks: (first byte, one after the last, problem)."""
    bad = list(damaged_blocks(path, record, blocks))
    ends = [i for i, (a, b) in enumerate(pairwise(bad), start=1) if b[0] != a[0] + 1]
    for start, stop in pairwise([0, *ends, len(bad)]) if bad else ():
        first, last = bad[start][0], bad[stop - 1][0]
        more = f", and {stop - start - 1} more blocks" if stop - start > 1 else ""
        yield record.block(first).start, record.block(last).stop, bad[start][1] + more


def _object_damage(
    backend: Backend, shard: int, name: str, start: int, problem: str, stop: int = 2**62
) -> Damage:
    column, rows = backend.holds(shard, name, start, stop)
    return Damage(kind="shard", problem=problem, object=name, shard=shard, column=column, rows=rows)


def _check_columns(backend: Backend, found: ShardFindings) -> None:
    """Read every column, and compare what it holds with its rules and with the ledger."""
    assert found.entry is not None
    shard, rows = found.shard, backend.manifest.shard_range(found.shard)
    rules = ShardRules(backend.manifest, shard)
    damaged = {damage.column for damage in found.damages}
    anything = bool(found.damages)
    valid: Array | None = None
    hashed: Array | None = None
    for name, column in backend.columns.items():
        if name in damaged:
            continue
        try:
            values = backend.read_shard(shard, name, found.entry.objects)
        except (StoreError, OSError) as error:
            if not anything:  # else it is about what was found above
                problem = problem_of(error)
                found.damages.append(
                    Damage(kind="shard", problem=problem, shard=shard, column=name, rows=rows)
                )
            continue
        if name == "sample_id":
            found.ids = [str(sample_id) for sample_id in values]
            found.odd_ids = [sample_id for sample_id in found.ids if not _is_tame(sample_id)]
        if name == "valid":
            valid = values
        if name == "content_sha256":
            hashed = np.asarray(values.any(axis=1))
        for broken in rules.check(column, values):
            span = range(rows.start + broken.rows.start, rows.start + broken.rows.stop)
            problem = broken.text
            if found.ids is not None and broken.examples:
                problem += f", such as {shorten([found.ids[row] for row in broken.examples])}"
            found.damages.append(
                Damage(kind="shard", problem=problem, shard=shard, column=name, rows=span)
            )
    if valid is not None and hashed is not None:
        found.unbound = int(np.count_nonzero(valid & ~hashed))
    if valid is not None and found.ids is not None:
        _compare_invalid(backend, found, valid)


def _compare_invalid(backend: Backend, found: ShardFindings, valid: Array) -> None:
    assert found.entry is not None
    assert found.ids is not None
    rows = backend.manifest.shard_range(found.shard)
    flagged = {rows.start + i: found.ids[i] for i in np.flatnonzero(np.logical_not(valid)).tolist()}
    listed = {item.row: item.sample_id for item in found.entry.invalid}
    differing = sorted(flagged.items() ^ listed.items())
    if differing:
        numbers = sorted({row for row, _ in differing})
        found.damages.append(
            Damage(
                kind="shard",
                problem=f"{len(numbers)} rows: the entry lists other invalid rows than this column",
                object=entry_path(backend.store, found.shard).relative_to(backend.store).as_posix(),
                shard=found.shard,
                column="valid",
                rows=range(numbers[0], numbers[-1] + 1),
            )
        )


def belongs_to_shard(backend: Backend, name: str) -> bool:
    """Whether a name is that of an object or entry of some shard; decided by the name, as there may be millions."""
    if backend.manifest.work.shard_names and name in _mirrored(backend):
        return True
    numbers = {int(digits) for digits in _DIGITS.findall(name)}
    return any(
        name == entry_name(number) or name in backend.object_names(number)
        for number in numbers
        if number < backend.manifest.num_shards
    )


@lru_cache(maxsize=1)
def _mirrored(backend: Backend) -> frozenset[str]:
    """Objects of a store whose shards have the names of image tars."""
    shards = range(backend.manifest.num_shards)
    return frozenset(name for shard in shards for name in backend.object_names(shard))


def _is_tame(sample_id: str) -> bool:
    """Whether an id can be shown on a terminal, and would stay below a folder as the name of a file."""
    return (
        sample_id.isprintable()
        and not sample_id.startswith(("/", "~"))
        and "\\" not in sample_id
        and ".." not in sample_id.split("/")
    )


def problem_of(error: Exception, path: Path | None = None) -> str:
    """Return a message without the file at its start and the advice at its end."""
    text = str(error).removeprefix(f"{path}: ")
    text = re.sub(r'^.*?\), column "[^"]*": ', "", text)
    return re.split(r"\. (?:Run|Check|Delete|Fetch) ", text)[0].rstrip(".")
