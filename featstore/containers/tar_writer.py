"""The bytes of one tar of a WebDataset store, made for all its samples at once.

Nothing in them depends on the time, the user or the machine: a resumed store has the same bytes.
"""

# R rows of the shard

from collections.abc import Mapping
from typing import Any

import numpy as np

from featstore.containers.tar_layout import INDEX, STARTS, TarLayout, stored_dtype
from featstore.files.array_types import Array, Bytes
from featstore.files.tar_headers import END, extension_blocks, headers, npy_header, padded
from featstore.format.artefacts import pack_texts
from featstore.format.fields import Column


class TarEncoder:
    """The bytes of one tar."""

    def __init__(self, layout: TarLayout, shard: int, columns: Mapping[str, Array]) -> None:
        self.layout, self.shard, self.columns = layout, shard, columns
        self.keys = layout.keys(shard, columns["sample_id"].tolist())
        assert len(set(self.keys)) == len(self.keys), "sample ids repeat"
        suffixes = map(layout.suffix, [*layout.fixed, *layout.ragged, *layout.ranges.values()])
        longest = max(["json", *suffixes], key=len)
        self.extensions = extension_blocks([f"{key}.{longest}" for key in self.keys])
        # Items of each row and view.
        self.counts = {
            name: np.diff(columns[ranges].reshape(len(self.keys), -1, 2), axis=2)[..., 0]
            for name, ranges in layout.ranges.items()
        }

    def parts(self) -> list[Any]:
        """Index, samples, mark of the end; what a sample has of its own size comes last in it."""
        rows = len(self.keys)
        fixed = [self._member(name, self.columns[name]) for name in self.layout.fixed]
        for name, counts in self.counts.items():
            offsets = np.concatenate([np.zeros((rows, 1), int), counts.cumsum(axis=1)], axis=1)
            fixed.append(self._member(self.layout.ranges[name], offsets))
        texts = self.layout.jsons(self.columns)
        varying = [self._items(name) for name in self.layout.ragged]
        if self.layout.texts:  # they may be long; else all jsons are padded to one size
            varying.append(self._varying("json", texts))
        else:
            size = max(map(len, texts))
            same = b"".join(text.ljust(size) for text in texts)  # JSON may end in spaces
            data = np.frombuffer(same, dtype=np.uint8).reshape(rows, size)
            fixed.append([self._headers("json", size), data])
        samples = _side_by_side(rows, fixed)
        tails = [b"".join(parts) for parts in zip(*varying, strict=True)]
        sizes = np.full(rows, samples.shape[1])
        sizes[: len(tails)] += np.array(list(map(len, tails)), dtype=np.int64)
        index = self._index(np.concatenate([[0], np.cumsum(sizes)]))
        if not tails:
            return [*index, samples.reshape(-1), END]
        each = (part for row in range(rows) for part in (samples[row], tails[row]))
        return [*index, *each, END]

    def _headers(self, suffix: str, sizes: Any) -> Bytes:
        """(R, bytes of a header)."""
        sizes = np.broadcast_to(np.asarray(sizes, dtype=np.int64), len(self.keys))
        return headers([f"{key}.{suffix}" for key in self.keys], sizes, self.extensions)

    def _member(self, column: str, values: Array) -> list[Bytes]:
        """Headers (R, ...), npy header (1, ...) and numbers (R, ...) of a column of fixed size."""
        spec = self.layout.columns[column]
        data = as_bytes(np.ascontiguousarray(values, dtype=spec.dtype))
        npy = np.frombuffer(npy_header(stored_dtype(spec), values.shape[1:]), dtype=np.uint8)
        heads = self._headers(self.layout.suffix(column), len(npy) + data.shape[1])
        return [heads, npy[None], data]

    def _varying(self, suffix: str, contents: list[bytes]) -> list[bytes]:
        """Members of sizes of their own, whole blocks each."""
        heads = self._headers(suffix, [len(data) for data in contents])
        return [
            head.tobytes() + data.ljust(padded(len(data)), b"\0")
            for head, data in zip(heads, contents, strict=True)
        ]

    def _items(self, name: str) -> list[bytes]:
        """Members of a ragged column."""
        column = self.layout.ragged[name]
        dtype = stored_dtype(column)
        ranges = self.columns[self.layout.ranges[name]].reshape(len(self.keys), -1, 2)
        spans = ranges - self._origin(column)
        values = self.columns[name].astype(column.dtype, copy=False)
        contents = []
        for views in spans.tolist():
            items = np.concatenate([values[start:stop] for start, stop in views])
            contents.append(npy_header(dtype, items.shape) + items.tobytes())
        return self._varying(self.layout.suffix(name), contents)

    def _ranges(self, name: str) -> Array:
        """Ranges of a ragged column as if its items had been given row after row, whatever order they came in."""
        column, counts = self.layout.ragged[name], self.counts[name].reshape(-1)
        stops = self._origin(column) + np.cumsum(counts)
        ranges = np.stack([stops - counts, stops], axis=1)
        return ranges.reshape(self.columns[self.layout.ranges[name]].shape)

    def _origin(self, column: Column) -> int:
        """Position of the shard's first item."""
        return self.shard * self.layout.manifest.work.shard_rows * column.capacity

    def _index(self, starts: Array) -> list[bytes]:
        arrays: dict[str, Array] = {STARTS: starts.astype("<i8")}
        columns = {**self.columns, **{r: self._ranges(c) for c, r in self.layout.ranges.items()}}
        for name, column in self.layout.indexed.items():
            values = columns[name]
            if column.dtype is None:
                packed = pack_texts(values.reshape(-1).tolist())
                arrays[f"{INDEX}{name}/values"] = packed["text.values"]
                arrays[f"{INDEX}{name}/offsets"] = packed["text.offsets"]
            else:
                arrays[f"{INDEX}{name}/values"] = values.astype(stored_dtype(column), copy=False)
        heads = [npy_header(values.dtype, values.shape) for values in arrays.values()]
        sizes = [len(head) + v.nbytes for head, v in zip(heads, arrays.values(), strict=True)]
        extensions = extension_blocks(list(arrays))
        members = headers(list(arrays), np.array(sizes), extensions)
        arrays[STARTS] += members.size + sum(map(padded, sizes))
        return [
            member.tobytes() + head + values.tobytes().ljust(padded(size) - len(head), b"\0")
            for member, head, values, size in zip(
                members, heads, arrays.values(), sizes, strict=True
            )
        ]


def _side_by_side(rows: int, members: list[list[Bytes]]) -> Bytes:
    """Put the parts of members side by side, each member filled up to whole blocks: (R, bytes of a sample)."""
    widths = [padded(sum(part.shape[1] for part in parts)) for parts in members]
    samples = np.zeros((rows, sum(widths)), dtype=np.uint8)
    for parts, end in zip(members, np.cumsum(widths).tolist(), strict=True):
        at = end - padded(sum(part.shape[1] for part in parts))
        for part in parts:
            samples[:, at : at + part.shape[1]] = part
            at += part.shape[1]
    return samples


def as_bytes(values: Array) -> Bytes:
    """The bytes of each row of a contiguous array, (R, bytes of a row)."""
    return values.reshape(len(values), -1).view(np.uint8)
