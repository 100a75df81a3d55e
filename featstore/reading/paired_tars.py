"""Image tars and the feature tars that mirror them, read in step: by key, never by position.

Made for stores with ``container="webdataset"`` whose shards mirror the image tars (``featstore.sources.mirror_work``).
Image tars are read from begin to end; the features of a sample are found by its key. Every rank gives the same number
of batches, whatever the sizes of the tars. No torch here: a stream is a plain iterable.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from featstore.errors import ConfigError, FeatstoreError, MissingSamples, SourceError, shorten
from featstore.files.array_types import Mask, Rows
from featstore.files.tar_headers import BadTar
from featstore.format.fields import Ragged, TopK
from featstore.format.manifest_records import RaggedEncoding, TopKEncoding
from featstore.reading.store import FeatureStore
from featstore.sources.find_files import find_local_files
from featstore.sources.tarstream import TarImage, TarReader

GROUP_SAMPLES = 64  # samples whose features are gathered at once
GROUP_BYTES = 8 * 2**20  # fewer, where their features would take more than this

Missing = Literal["error", "skip"]

ORDER: tuple[str, ...] = ("batch_size", "rank", "num_ranks", "worker", "num_workers")
ORDER += ("shuffle_shards", "shuffle_buffer", "seed", "pad", "missing")
"""Settings that decide which sample comes when."""


class Pair(NamedTuple):
    """One sample."""

    sample_id: str
    image: bytes  # the file as it is in the tar
    fields: dict[str, Any]
    """By name: (V, *shape) without V where the field is not per view; ``TopK`` or ``Ragged`` of one row."""


class PairStream:
    """Pairs of an image and its features, in the order of the image tars; iterating gives one epoch after another.

    The samples of all tars are laid end to end, the tars shuffled if asked, and cut into one span for each worker of
    each rank, equal to within one sample; a span may begin inside a tar. So every worker gives ``batches_per_worker``
    full batches: the remainder is dropped, or with ``pad`` filled up by beginning the span again.

    For torch, wrap it in an ``IterableDataset`` whose ``__iter__`` yields from
    ``stream.split(info.id, info.num_workers)``.

    Attributes:
        epoch: that the next iteration begins or resumes.
        position: samples of it that were given already.
        skipped: samples found on one side only, with ``missing="skip"``, in the tars that this worker has read.
    """

    def __init__(
        self,
        store: FeatureStore | str | Path,
        images: str | Path,
        *,
        fields: Sequence[str] | None = None,
        batch_size: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
        worker: int = 0,
        num_workers: int = 1,
        shuffle_shards: bool = False,
        shuffle_buffer: int = 0,
        seed: int = 0,
        pad: bool = False,
        missing: Missing = "error",
        check_content: bool = True,
        image_member: str = "",
    ) -> None:
        """Open the store and find the tars; nothing is read yet.

        Args:
            images: the image tars, as they were given to extract.py: a folder, a glob or a brace pattern.
            fields: names of the fields to read; all if not given.
            batch_size: samples of a batch; the stream gives single samples, as many as make whole batches.
            num_ranks: processes that share an epoch.
            worker: of this loader process within its rank.
            num_workers: loader processes of each rank; 1 where there are none.
            shuffle_shards: another order of the tars in each epoch.
            shuffle_buffer: samples to draw from at random, held in memory; 0 keeps the order of the tars.
            seed: of both kinds of shuffling, 0 or more.
            pad: repeat samples at the end of an epoch, and leave none out.
            missing: what to do about a sample that is on one side only.
            check_content: compare the SHA-256 of each image to the one that its features were made from.
            image_member: extension of the member that is the image, as extraction was told with
                ``--source.image_member``; "" for any image.

        Raises:
            ConfigError: the store does not mirror tars, or a setting is out of range.
            MissingSamples: there are image tars that the store has not.
            SourceError: the store mirrors image tars that are not there.
            StoreError: the store cannot be opened, or is not complete.
        """
        self.store = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
        manifest = self.store.manifest
        _check_mirrored(self.store)
        if not (0 <= rank < num_ranks and 0 <= worker < num_workers and batch_size > 0):
            raise ConfigError(
                f"rank {rank} of {num_ranks}, worker {worker} of {num_workers}, batch_size {batch_size}: expected "
                "numbers from 0 on, and a batch of one or more."
            )
        unknown = sorted(set(fields or ()) - manifest.fields.keys())
        if unknown:
            raise ConfigError(
                f"{self.store.address}: no fields {unknown}; it has: {shorten(sorted(manifest.fields))}."
            )
        self.images = str(images)
        self.fields = tuple(manifest.fields if fields is None else fields)
        self.batch_size = batch_size
        self.rank, self.num_ranks = rank, num_ranks
        self.worker, self.num_workers = worker, num_workers
        self.shuffle_shards, self.shuffle_buffer, self.seed = shuffle_shards, shuffle_buffer, seed
        self.pad = pad
        self.missing = missing
        self.check_content, self.image_member = check_content, image_member
        self.epoch = self.position = self.skipped = 0
        names = manifest.work.shard_names
        self._tars = _find_tars(self.store, self.images, names, strict=missing == "error")
        # Usable samples; an image that is not there is found out while reading.
        self._counts = np.zeros(manifest.num_shards, dtype=np.int64)
        for entry in self.store.entries(list(self._tars)):
            rows = manifest.shard_range(entry.shard)
            self._counts[entry.shard] = len(rows) - len(entry.invalid)
        if self.batches_per_worker == 0 or self._counts.sum() < num_ranks * num_workers:
            raise ConfigError(
                f"{self.store.address}: {self._counts.sum():,} usable samples are not one batch of {batch_size} for "
                f"each of {num_ranks} x {num_workers} workers. Use fewer workers, smaller batches, or pad=True."
            )

    @property
    def batches_per_worker(self) -> int:
        """Batches that each worker gives in an epoch, the same for all workers of all ranks."""
        parts, total = self.num_ranks * self.num_workers, int(self._counts.sum())
        if self.pad:
            return math.ceil(math.ceil(total / parts) / self.batch_size)
        return total // parts // self.batch_size

    @property
    def batches_per_rank(self) -> int:
        """Batches that each rank gives in an epoch: its steps."""
        return self.batches_per_worker * self.num_workers

    def __len__(self) -> int:
        """Samples that this worker gives in an epoch."""
        return self.batches_per_worker * self.batch_size

    def split(self, worker: int, num_workers: int) -> "PairStream":
        """The same stream as one of several loader processes reads it, at the begin of the same epoch."""
        if self.position:
            raise ConfigError(
                f"{self.position} samples of epoch {self.epoch} were given already. Split a stream at the begin of an "
                "epoch, and restore each worker's own state."
            )
        other = PairStream(
            self.store,
            self.images,
            fields=self.fields,
            check_content=self.check_content,
            image_member=self.image_member,
            **{**self._order(), "worker": worker, "num_workers": num_workers},
        )
        other.epoch = self.epoch
        return other

    def set_epoch(self, epoch: int) -> None:
        """Begin with this epoch at the next iteration. Loaders that start workers anew need it, as samplers do."""
        self.epoch, self.position = epoch, 0

    def _order(self) -> dict[str, Any]:
        """What decides which sample comes when."""
        return {name: getattr(self, name) for name in ORDER}

    def state_dict(self) -> dict[str, Any]:
        """Where this stream is, in plain values. A loader that reads ahead must take it along with each batch."""
        order = {**self._order(), "fingerprint": self.store.fingerprint}
        return {**order, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another stream of the same settings was."""
        now = {**self.state_dict(), "epoch": state.get("epoch"), "position": state.get("position")}
        differing = [
            f"{key} {state.get(key)!r}, now {value!r}"
            for key, value in now.items()
            if state.get(key) != value
        ]
        if differing or state.keys() != now.keys() or not 0 <= state["position"] <= len(self):
            raise ConfigError(
                f"the state is of another stream: {shorten(differing) or sorted(state)}. Use the settings that it was "
                "saved with, or set_epoch()."
            )
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Pair]:
        """Give the rest of this epoch.

        Raises:
            MissingSamples: an image has no features, or other bytes than those that its features were made from.
            SourceError: an image tar cannot be read, or lacks a sample that the store has.
            ShardCorrupt: the bytes of a feature tar are not those that were written.
        """
        size = len(self)
        order = np.arange(size)
        if self.shuffle_buffer > 1:
            part = self.rank * self.num_workers + self.worker
            order = buffered_order(size, self.shuffle_buffer, self._generator(1, part))
        # What was given already is walked over, not read.
        wanted = np.zeros(size, dtype=np.bool_)
        wanted[order[self.position :]] = True
        arriving = self._read(wanted)
        held: dict[int, Pair] = {}
        for number in order[self.position :].tolist():
            while number not in held:
                at, pair = next(arriving)
                held[at] = pair
            self.position += 1
            yield held.pop(number)
        self.epoch, self.position = self.epoch + 1, 0

    def _generator(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, *what])

    def _span(self) -> list[tuple[int, int, int]]:
        """(shard, first, stop) of this worker: usable samples of each image tar, counted in its order."""
        order = np.arange(len(self._counts))
        if self.shuffle_shards:
            order = self._generator(0).permutation(order)
        ends = np.cumsum(self._counts[order])
        parts = self.num_ranks * self.num_workers
        part = self.rank * self.num_workers + self.worker
        first, stop = (int(ends[-1]) * number // parts for number in (part, part + 1))
        span = []
        for shard, end in zip(order.tolist(), ends.tolist(), strict=True):
            begin = end - int(self._counts[shard])
            if max(first, begin) < min(stop, end):
                span.append((shard, max(first, begin) - begin, min(stop, end) - begin))
        return span

    def _read(self, wanted: Mask) -> Iterator[tuple[int, Pair]]:
        """(number, pair) of the samples that are wanted; the span is begun again as often as it takes."""
        row_bytes = sum(
            self.store.manifest.fields[name].row_bytes(len(self.store.manifest.views))
            for name in self.fields
        )
        most = max(1, min(GROUP_SAMPLES, GROUP_BYTES // max(1, row_bytes)))
        number, size = 0, len(wanted)
        group: list[tuple[int, int, str, bytes]] = []
        while number < size:
            before = number
            for shard, first, stop in self._span():
                for count, (row, sample_id, image) in enumerate(self._samples(shard)):
                    if count >= stop or number == size:
                        break
                    if count < first:
                        continue
                    if wanted[number]:
                        if len(group) == most:
                            yield from self._pairs(group)
                            group = []
                        group.append((number, row, sample_id, image()))
                    number += 1
            if number == before:
                raise SourceError(
                    f"{self.images}: none of the samples of {self.store.address} is in these tars. Give the tars that "
                    "were extracted from."
                )
        yield from self._pairs(group)

    def _samples(self, shard: int) -> Iterator[tuple[int, str, Callable[[], bytes]]]:
        """(row, id, function that reads the image) of the usable samples of an image tar, in its order."""
        path = self._tars[shard]
        ids, valid, hashes = (
            self.store.read_shard(shard, column)
            for column in ("sample_id", "valid", "content_sha256")
        )
        prefix = self.store.manifest.work.shard_names[shard] + "/"
        local_of = {sample_id.removeprefix(prefix): i for i, sample_id in enumerate(ids)}
        start = self.store.manifest.shard_range(shard).start
        seen = np.zeros(len(ids), dtype=np.bool_)
        with TarReader(path) as tar:
            try:
                for image in tar.images(image_member=self.image_member):
                    local = local_of.get(image.key, -1)
                    if local < 0:
                        self._unpaired(_no_features(self.store, path, image.key))
                        continue
                    seen[local] = True
                    if valid[local]:
                        expected = hashes[local].tobytes() if self.check_content else b""
                        yield start + local, ids[local], partial(_checked, image, expected)
            except BadTar as error:
                # A tar that breaks off may have been extracted as far as it goes.
                if not seen.all():
                    raise tar.broken(error) from None
        for local in np.flatnonzero(~seen).tolist():
            self._unpaired(
                SourceError(
                    f"{path}: no image {ids[local].removeprefix(prefix)!r}, but {self.store.address} has its features. "
                    'Use the tars that were extracted from, or missing="skip".'
                )
            )

    def _unpaired(self, error: FeatstoreError) -> None:
        if self.missing == "error":
            raise error
        self.skipped += 1

    def _pairs(self, group: Sequence[tuple[int, int, str, bytes]]) -> Iterator[tuple[int, Pair]]:
        rows = np.array([row for _, row, _, _ in group], dtype=np.int64)
        columns = {name: self._gather(name, rows) for name in self.fields}
        for i, (number, _, sample_id, image) in enumerate(group):
            fields = {name: values[i] for name, values in columns.items()}
            yield number, Pair(sample_id, image, fields)

    def _gather(self, name: str, rows: Rows) -> Sequence[Any]:
        """A field of some rows, one item each."""
        field = self.store.manifest.fields.get(name)
        encoding = None if field is None else field.encoding
        if isinstance(encoding, TopKEncoding):
            found = self.store.gather_topk(name, rows)
            return [TopK(*pair) for pair in zip(found.values, found.indices, strict=True)]
        if isinstance(encoding, RaggedEncoding):
            items = self.store.gather_ragged(name, rows)
            each = (len(items.offsets) - 1) // len(rows)
            return [_ragged_row(items, i * each, each) for i in range(len(rows))]
        values = self.store.gather(name, rows)
        singly: list[Any] = [values[i, ...] for i in range(len(rows))]
        # One that waits in a buffer must not keep its whole group in memory.
        return [value.copy() for value in singly] if self.shuffle_buffer > 1 else singly


def buffered_order(size: int, buffer: int, generator: np.random.Generator) -> Rows:
    """The order in which a shuffle buffer gives what arrives as 0, 1, 2 ...

    Args:
        generator: draws which of them goes next.
    """
    held = list(range(min(buffer, size)))
    given = []
    draws = generator.integers(0, max(1, len(held)), size - len(held)).tolist()
    for arriving, draw in enumerate(draws, len(held)):
        given.append(held[draw])
        held[draw] = arriving
    return np.array(given + generator.permutation(held).tolist(), dtype=np.int64)


def _check_mirrored(store: FeatureStore) -> None:
    manifest = store.manifest
    if manifest.container != "webdataset" or not manifest.work.shard_names:
        raise ConfigError(
            f"{store.address}: its shards do not mirror image tars (container {manifest.container}), so there is "
            "nothing to read in step. Extract from tars into container webdataset, or read rows with FeatureStore."
        )


def _find_tars(
    store: FeatureStore, images: str, names: Sequence[str], *, strict: bool
) -> dict[int, Path]:
    """The image tar of each shard."""
    found = dict(find_local_files(images))
    absent = [name for name in names if name not in found]
    extra = sorted(found.keys() - set(names))
    if absent and (strict or len(absent) == len(names)):
        raise SourceError(
            f"{images}: {len(absent)} of {len(names)} image tars of {store.address} are not there: {shorten(absent)}. "
            'Give the pattern that was extracted from, or missing="skip".'
        )
    if extra and strict:
        raise MissingSamples(
            f"{store.address}: {len(extra)} of {len(found)} image tars have no features: {shorten(extra)}. Narrow the "
            'pattern, extract them too, or use missing="skip".'
        )
    return {shard: found[name] for shard, name in enumerate(names) if name in found}


def _no_features(store: FeatureStore, path: Path, key: str) -> MissingSamples:
    return MissingSamples(
        f"{path}: image {key!r} has no features in {store.address}. Extract again if images were added, or use "
        'missing="skip".'
    )


def _checked(image: TarImage, expected: bytes) -> bytes:
    """Read an image and compare its hash, if there is one to compare."""
    data = image.read()
    if expected and hashlib.sha256(data).digest() != expected:
        raise MissingSamples(
            f"{image.file.path}: image {image.key!r} is not the one that its features were made from (sha256 "
            f"{hashlib.sha256(data).hexdigest()[:16]}.., expected {expected.hex()[:16]}..). Extract again, or restore "
            "the image."
        )
    return data


def _ragged_row(items: Ragged, first: int, count: int) -> Ragged:
    offsets = items.offsets[first : first + count + 1]
    return Ragged(items.values[offsets[0] : offsets[-1]].copy(), offsets - offsets[0])
