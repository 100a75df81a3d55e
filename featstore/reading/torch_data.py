"""Stored rows as torch tensors: a data set with batched reads, and a loader that resumes.

The one file of the store's core that imports torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, get_args

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from featstore.errors import ConfigError
from featstore.files.array_types import Array, Rows
from featstore.format.fields import Codes, Ragged, TopK
from featstore.format.manifest_records import Int8Encoding, NumberType, RaggedEncoding, TopKEncoding
from featstore.reading.open_store import OpenStore
from featstore.reading.shuffling import BatchSampler, Order

TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(NumberType)}

BLOCK_BYTES = 4 * 2**20  # what is read together when rows are shuffled in blocks

AHEAD_BATCHES = 4
"""So many batches ahead, the rows of a store at a URL are fetched while the caller works on a batch."""

MIXED_SHARDS = 8
"""Shards whose rows are mixed where rows are shuffled by shards."""

TensorBatch = dict[str, Any]


def as_tensor(array: Array) -> Tensor:
    """The same memory as a tensor; bfloat16 keeps its bits."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_array(tensor: Tensor) -> Array:
    """The same memory, on the CPU, as an array; bfloat16 keeps its bits."""
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    found: Array = tensor.numpy()
    return found


def gather_tensors(
    store: OpenStore,
    fields: Sequence[str],
    rows: Rows,
    *,
    views: Rows | None = None,
    pinned: bool = False,
) -> TensorBatch:
    """Read rows of several fields.

    Args:
        store: An open store.
        fields: Names of fields.
        rows: (B,) row numbers.
        views: (k,) columns of the view axis to read, or (B, k) of each row its own; all if not given. Fields that are
            not per view are read as they are.
        pinned: gather straight into page-locked memory, from which a GPU copies without waiting.

    Returns:
        By field, (B, V, *shape) in the stored dtype (int8 fields as float32). A top-k field gives ``<name>.values`` and
        ``<name>.indices``, a ragged one ``<name>.values`` and ``<name>.offsets``, text a list.

    Raises:
        ConfigError, MissingSamples, ShardCorrupt: see ``FeatureStore.gather``.
    """
    batch: TensorBatch = {}
    for name in fields:
        spec = store.manifest.fields.get(name)
        if spec is None:
            batch[name] = store.gather(name, rows)  # says which fields there are
            continue
        picked = views if spec.per_view else None
        if isinstance(spec.encoding, TopKEncoding):
            batch |= _named(name, store.gather_topk(name, rows, views=picked))
        elif isinstance(spec.encoding, RaggedEncoding):
            batch |= _named(name, store.gather_ragged(name, rows, views=picked))
        elif spec.dtype == "text":
            batch[name] = store.gather(name, rows, views=picked).tolist()
        elif isinstance(spec.encoding, Int8Encoding):
            codes = store.gather_codes(name, rows, views=picked)
            tensor = torch.empty(codes.codes.shape, pin_memory=pinned)
            batch[name] = numbers_of(codes, out=tensor)
        else:
            count = len(store.manifest.views) if picked is None else picked.shape[-1]
            shape = (len(rows), *((count,) if spec.per_view else ()), *spec.shape)
            tensor = torch.empty(shape, dtype=TORCH_DTYPES[spec.dtype], pin_memory=pinned)
            store.gather(name, rows, views=picked, out=as_array(tensor))
            batch[name] = tensor
    return batch


def numbers_of(
    found: Codes, *, device: torch.device | str = "cpu", out: Tensor | None = None
) -> Tensor:
    """Turn int8 rows into numbers; on a GPU, so that a quarter of the bytes is copied there.

    Args:
        found: from ``FeatureStore.gather_codes``.
        device: where.
        out: (B, V, *shape) float32 on that device to write into; made if not given.

    Returns:
        (B, V, *shape) float32.
    """
    codes = torch.from_numpy(found.codes).to(device, non_blocking=True)
    if out is None:
        out = torch.empty(codes.shape, device=device)
    out.copy_(codes)
    channels = found.channels
    if channels is not None:
        out *= torch.from_numpy(channels.scale).to(device)
    scale = None
    if found.scale is not None:
        scale = torch.from_numpy(found.scale).to(device)[..., None]
    if channels is None:
        return out if scale is None else out.mul_(scale)
    offset = torch.from_numpy(channels.offset).to(device)
    return out.add_(offset) if scale is None else torch.addcmul(offset, out, scale, out=out)


def _named(name: str, parts: TopK | Ragged) -> TensorBatch:
    return {f"{name}.{key}": as_tensor(value) for key, value in parts._asdict().items()}


class FeatureDataset(Dataset[TensorBatch]):
    """Rows of some fields, read a batch at a time.

    With a ``DataLoader``, pass ``collate_fn=as_is`` and a batch sampler; ``FeatureLoader`` does. The data set can be
    forked, and sent to a spawned worker: each process opens its own maps.

    Args:
        store: an open store.
        fields: what to read.
        rows: (n,) rows of the store that make up the data set; None takes all valid ones, which reads ``valid`` once.
        views: columns of the view axis to read; all if not given.
        labels: also give ``label``, (B,) int64, -1 unknown.
        pinned: see ``gather_tensors``; ignored in worker processes, whose batches travel through shared memory.

    Raises:
        ConfigError: a field that the store does not have.
    """

    def __init__(
        self,
        store: OpenStore,
        fields: Sequence[str],
        *,
        rows: Rows | None = None,
        views: Sequence[int] | None = None,
        labels: bool = False,
        pinned: bool = False,
    ) -> None:
        missing = [name for name in fields if name not in store.manifest.fields]
        if missing or not fields:
            raise ConfigError(
                f"{store.address}: no field {', '.join(missing) or '(none given)'}; it has: "
                f"{', '.join(sorted(store.manifest.fields))}."
            )
        self.store = store
        self.fields = tuple(fields)
        self.rows = np.flatnonzero(store.valid) if rows is None else np.asarray(rows, np.int64)
        self.pinned = pinned
        self.views = None if views is None else store.view_numbers(views)
        self._labels = store.labels[self.rows] if labels else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int] | Rows) -> TensorBatch:
        """One batch: ``row`` (B,) int64, and what ``gather_tensors`` gives."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows = self.rows[chosen]
        pinned = self.pinned and get_worker_info() is None
        batch = gather_tensors(self.store, self.fields, rows, views=self.views, pinned=pinned)
        batch["row"] = torch.from_numpy(rows)
        if self._labels is not None:
            batch["label"] = torch.from_numpy(self._labels[chosen])
        return batch

    def __getitem__(self, index: int) -> TensorBatch:
        """One row, still with a batch axis of 1."""
        return self.__getitems__([index])

    def block_rows(self) -> int:
        """Rows that lie together and are worth reading together: a power of two, about 4 MiB of the widest field."""
        views = len(self.store.manifest.views)
        widest = max(
            1, *(self.store.manifest.fields[name].row_bytes(views) for name in self.fields)
        )
        return int(1 << max(0, (BLOCK_BYTES // widest).bit_length() - 1))

    def compressed(self) -> bool:
        """Whether a field's rows come in chunks that are decompressed whole."""
        return any(self.store.manifest.fields[name].codec != "raw" for name in self.fields)


def as_is(batch: TensorBatch) -> TensorBatch:
    """Collate function for batches that are batches already."""
    return batch


class FeatureLoader:
    """Batches of a data set: shuffled, for one of several ranks, resumable in the middle of an epoch.

    Args:
        dataset: what to read.
        batch_size: rows per batch and rank.
        shuffle: "rows" mixes all rows; "blocks" mixes blocks of neighbours and then their rows, which compressed and
            remote stores need; "shards" mixes shards, and then the rows of eight at a time: the first epoch from a URL
            fetches the next eight while it reads these; "auto" takes blocks for compressed fields; "none" keeps the
            order.
        workers: processes that read; 0 reads in this one, which is fastest for memory-mapped rows.
        rank, world_size, drop_last: see ``BatchSampler``.
        seed: chooses the orders.
        context: how workers start, "fork" or "spawn".
    """

    def __init__(
        self,
        dataset: FeatureDataset,
        *,
        batch_size: int,
        shuffle: str = "auto",
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        seed: int = 0,
        context: str | None = None,
    ) -> None:
        if shuffle not in ("auto", "rows", "blocks", "shards", "none"):
            raise ConfigError(f"shuffle {shuffle!r}: expected auto, rows, blocks, shards or none.")
        order = Order(num_rows=len(dataset), seed=seed, shuffle=shuffle != "none")
        if shuffle == "blocks" or (shuffle == "auto" and dataset.compressed()):
            order = replace(order, block_rows=dataset.block_rows())
        elif shuffle == "shards":
            rows = dataset.store.manifest.work.shard_rows
            order = replace(order, block_rows=rows, buffer_blocks=MIXED_SHARDS)
        self.dataset = dataset
        self.sampler = BatchSampler(
            order, batch_size=batch_size, rank=rank, world_size=world_size, drop_last=drop_last
        )
        self._loader: DataLoader[TensorBatch] = DataLoader(
            dataset,
            batch_sampler=self.sampler,  # type: ignore[arg-type]  # an array of indices is as good as a list
            num_workers=workers,
            collate_fn=as_is,  # type: ignore[arg-type]  # a batch is one already, not a list
            pin_memory=dataset.pinned and workers > 0,
            multiprocessing_context=context if workers else None,
        )
        self._used = 0

    def __len__(self) -> int:
        """Batches left in this epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[TensorBatch]:
        """The rest of the epoch; then the next one begins."""
        self._used = 0
        # Worker processes read ahead by themselves.
        alone = self.dataset.store.remote and not self._loader.num_workers
        coming = islice(self.sampler, self._ahead(), None) if alone else iter(())
        for batch in self._loader:
            self._used += 1
            for indices in islice(coming, 1):
                self.dataset.store.fetch_ahead(self.dataset.fields, self.dataset.rows[indices])
            yield batch
        self.set_epoch(self.sampler.order.epoch + 1)

    def _ahead(self) -> int:
        """How many batches ahead rows are fetched: those of blocks that are mixed come together, a whole mix ahead."""
        order = self.sampler.order
        return max(AHEAD_BATCHES, order.block_rows * order.buffer_blocks // self.sampler.step_rows)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch."""
        self.sampler.set_epoch(epoch)
        self._used = 0

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch that was handed out, as plain numbers."""
        return self.sampler.state_dict(self._used)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch at which ``state_dict`` was taken; ranks and batch size may differ.

        Raises:
            ConfigError: the state is of other rows or another seed.
        """
        self.sampler.load_state_dict(state)
        self._used = 0


def split_batch(batch: TensorBatch, count: int) -> list[TensorBatch]:
    """The rows of a batch of ``gather_tensors`` one by one, without their first axis; views of the batch's memory."""
    samples: list[TensorBatch] = [{} for _ in range(count)]
    for name, values in batch.items():
        offsets = batch.get(f"{name.removesuffix('.values')}.offsets")
        if name.endswith(".offsets"):
            continue
        if offsets is None or not name.endswith(".values"):
            for sample, value in zip(samples, values, strict=True):
                sample[name] = value
            continue
        each = (len(offsets) - 1) // count  # views of a row
        for i, sample in enumerate(samples):
            part = offsets[i * each : (i + 1) * each + 1]
            sample[name] = values[int(part[0]) : int(part[-1])]
            sample[f"{name.removesuffix('.values')}.offsets"] = part - part[0]
    return samples
