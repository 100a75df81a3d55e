"""Extract shards: images -> frozen teacher -> store. Prints nothing but the progress bar.

Work is cut into shards, and batches are cut inside shards, always in the same places: a teacher's last bits depend on
how images are grouped, so only then do a resumed run and a run with more processes give the same bytes.
"""

# B images of a batch, V views, H W input pixels

import itertools
import math
import secrets
import shlex
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader

from featstore.containers import make_backend
from featstore.errors import (
    FeatstoreError,
    StoreError,
    StoreWriteError,
    TooManyInvalid,
    shorten,
)
from featstore.extraction.config import ExtractConfig
from featstore.extraction.images import InputBatch, inputs_of
from featstore.extraction.progress_bar import PARTS, ProgressBar
from featstore.extraction.teachers import Teacher
from featstore.format.artefacts import read_channels
from featstore.format.fields import empty_columns, field_columns, put, put_ragged
from featstore.format.int8 import Channels
from featstore.format.ledger import InvalidRow, committed_shards, read_complete
from featstore.format.manifest import (
    Manifest,
)
from featstore.format.pictures import PICTURES
from featstore.reading.store import FeatureStore
from featstore.reading.torch_data import TORCH_DTYPES, as_array
from featstore.sources import NO_LABEL, Source
from featstore.sources.loading import TIMEOUT_S, fit_workers, guarded
from featstore.writing.bucket import BucketStore
from featstore.writing.claims import Claims
from featstore.writing.commit import open_or_create, tidy
from featstore.writing.fill import FolderStore, fill
from featstore.writing.shard import Shard

TEACHER = "teacher"  # name of the run's teacher in the manifest


Features = dict[str, Any]
"""By field, a tensor (B, V, *shape); of a ragged field a list of B tensors (items, *shape)."""


class Pending:
    """Features that a device may still be computing or copying to the CPU.

    Args:
        features: By field, on the CPU; with CUDA they are valid when the work queued before is done.
    """

    def __init__(self, features: Features, device: torch.device) -> None:
        self._features = features
        cuda = device.type == "cuda"
        self._done = torch.cuda.Event() if cuda else None
        if self._done is not None:
            self._done.record()

    def wait(self) -> Features:
        """Return the features by field, (B, V, *shape) on the CPU, in the stored dtype; of ragged fields, lists."""
        if self._done is not None:
            self._done.synchronize()
        return self._features


def start_teacher(teacher: Teacher, inputs: Tensor) -> Pending:
    """Run every view of a batch through the teacher; with CUDA, asynchronously.

    Args:
        inputs: (B, V, 3, H, W) uint8 images, or (B, 1, L) int32 token numbers, or (B, 1, P, C) float32 points.
    """
    # One view at a time: memory does not grow with the number of views, and the batch stays the same size.
    outputs = [teacher.features(inputs[:, v]) for v in range(inputs.shape[1])]
    stored: Features = {}
    for name, spec in teacher.fields.items():
        dtype = TORCH_DTYPES[spec.dtype]
        if spec.encoding.kind == "ragged":  # one view
            stored[name] = [items.to("cpu", dtype) for items in outputs[0][name]]
        else:
            views = torch.stack([output[name] for output in outputs], dim=1).to(dtype)
            # into page-locked memory
            stored[name] = views.to("cpu", non_blocking=teacher.device.type == "cuda")
    return Pending(stored, teacher.device)


def run_teacher(teacher: Teacher, inputs: Tensor) -> Features:
    """Run every view of a batch through the teacher.

    Args:
        inputs: As of ``start_teacher``.

    Returns:
        By field, (B, V, *shape) on the CPU, in the dtype that is stored; of a ragged field a list of B tensors.
    """
    return start_teacher(teacher, inputs).wait()


@dataclass
class ExtractionSummary:
    """Result of a run."""

    store: Path | str  # folder or URL of the store
    rows: int  # images of the store
    written: int  # images written by all processes of this run
    invalid: list[InvalidRow]  # every unusable image of the store
    seconds: float  # wall time of the run
    waits: dict[str, float] = field(default_factory=dict)  # seconds this process spent per part

    @property
    def invalid_share(self) -> float:
        """Share of the store's rows that are unusable."""
        return len(self.invalid) / self.rows

    def check(self, most: float) -> None:
        """Raise when too many images were unusable. Raises TooManyInvalid: the share is above ``most``."""
        if self.invalid_share > most:
            examples = shorten([f"{item.sample_id} ({item.reason})" for item in self.invalid], 3)
            raise TooManyInvalid(
                f"{self.store}: {len(self.invalid)} of {self.rows} images are unusable "
                f"({self.invalid_share:.1%}, allowed {most:.1%}): {examples}. The store is complete and "
                f"the others are valid. List them: featstore inspect {shlex.quote(str(self.store))}. Accept them: "
                f"--max_invalid_share {math.ceil(1000 * self.invalid_share) / 1000}"
            )


def run(
    config: ExtractConfig,
    *,
    manifest: Manifest,
    source: Source,
    teacher: Teacher,
    accelerator: Accelerator,
    artefacts: Mapping[str, bytes] | None = None,
    bucket: BucketStore | None = None,
    progress: bool = True,
) -> ExtractionSummary:
    """Fill the store: create or resume it, together with other running processes.

    Every process takes missing shards, one at a time, until there are none; so the store is complete when this
    returns.

    Args:
        manifest: Of the store, existing or not, from ``featstore.extraction.new_manifest``.
        artefacts: bytes of the files that the manifest lists, if the store is new.
        bucket: The store, if it is in a bucket; ``config.store.path`` is then its local copy.

    Raises:
        ManifestMismatch, StoreBusy, StoreWriteError: see ``featstore.errors``.
    """
    start = time.perf_counter()
    store = Path(config.store.path)
    written, waits = 0, dict.fromkeys(PARTS, 0.0)
    first = _begin(store, manifest, artefacts or {}, accelerator, bucket)
    if first is not None:
        into = bucket or FolderStore(make_backend(store, manifest))
        committed = (
            bucket.committed if bucket else partial(committed_shards, store, manifest.num_shards)
        )
        with ProgressBar(committed, manifest, show=progress and accelerator.is_main_process) as bar:
            channels = read_channels(store, manifest)
            work = _Work(config, manifest, source, teacher, bar, waits, channels)
            filled = fill(
                into,
                partial(_make_shards, work),
                lease_s=config.store.lease_s,
                start=first,
                while_waiting=bar.wait_for,
            )
        waits["write"] += filled.flush_s
        written = _sum_of_processes(filled.rows, store, accelerator)
        if accelerator.is_main_process and bucket is None:
            tidy(store)
    done = FeatureStore.open(store)
    mark = read_complete(store, manifest.num_shards)
    none_invalid = mark is not None and mark.invalid_rows == 0
    if bucket is not None and not none_invalid:
        bucket.fetch_entries()
    return ExtractionSummary(
        store=bucket.url if bucket else store,
        rows=manifest.num_rows,
        written=written,
        invalid=[] if none_invalid else done.invalid_rows(),
        seconds=time.perf_counter() - start,
        waits=waits,
    )


def _begin(
    store: Path,
    manifest: Manifest,
    artefacts: Mapping[str, bytes],
    accelerator: Accelerator,
    bucket: BucketStore | None,
) -> float | None:
    """Create or open the store on the main process.

    Returns:
        Where this process begins its walk, as a share of the pending shards; None if the store is complete.
    """
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            if bucket is not None:
                alone, complete = bucket.begin(manifest, artefacts)
            else:
                manifest = open_or_create(store, manifest, artefacts)
                complete = read_complete(store, manifest.num_shards) is not None
                with suppress(StoreWriteError) if complete else nullcontext():
                    alone = tidy(store)
            # Where other jobs write already, a random start avoids competing for the same shards.
            outcome = [None if complete else 0.0 if alone else secrets.randbelow(1000) / 1000]
        except Exception as error:
            # The other processes wait for this broadcast; an unknown error may not be picklable.
            ours = isinstance(error, FeatstoreError)
            outcome = [
                error if ours else StoreError(f"{store}: the main process failed: {error!r}")
            ]
            if not ours:
                broadcast_object_list(outcome)
                raise
    broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    if bucket is not None:
        bucket.mirror()
    if outcome[0] is None:
        return None
    first = outcome[0] + accelerator.process_index / accelerator.num_processes
    return float(first % 1)


def _sum_of_processes(rows: int, store: Path, accelerator: Accelerator) -> int:
    if accelerator.num_processes == 1:
        return rows
    try:
        return int(accelerator.gather(torch.tensor([rows], device=accelerator.device)).sum())
    except RuntimeError as error:
        raise StoreError(
            f"{store}: complete, but another process of this run has failed before it could say what it did: {error}. "
            "Look for its message; run the same command again for the summary."
        ) from error


def batches_of(rows: range, batch_size: int) -> list[range]:
    """Cut the rows of one shard into batches, always in the same places."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


@dataclass
class _Work:
    """State shared by the steps of a run."""

    config: ExtractConfig
    manifest: Manifest
    source: Source
    teacher: Teacher
    progress: "ProgressBar"
    waits: dict[str, float]  # seconds this process has spent per part
    channels: dict[str, Channels]  # scales of quantised fields, by field


def _make_shards(work: _Work, claims: Claims, first: int) -> Iterator[Shard]:
    """Extract a claimed shard, then others until none is left to claim."""
    batches = _ClaimedBatches(work.manifest, claims, first)
    loader = guarded(_make_loader(work, batches, num_left=1 + len(claims)))
    while True:
        start = time.perf_counter()
        batch = next(loader, None)
        load_s = time.perf_counter() - start
        if batch is None:
            return
        number = batches.claimed.popleft()
        count = len(batches_of(work.manifest.shard_range(number), work.manifest.work.batch_size))
        rest = itertools.islice(loader, count - 1)
        if claims.is_committed(number):
            # Another process took over the lease and committed it. Loaded batches are dropped; the teacher is spared.
            deque(rest, maxlen=0)
            claims.give_back(number)
            continue
        shard = _extract_shard(work, number, itertools.chain([batch], rest), load_s=load_s)
        del batch
        start = time.perf_counter()
        yield shard  # comes back when the shard before this one is written
        work.waits["write"] += time.perf_counter() - start
        del shard


class _ClaimedBatches:
    """Yield the rows of each batch; a shard is claimed when the loader asks for its first batch.

    Attributes:
        claimed: Shards whose first batch was requested and not yet received.
    """

    def __init__(self, manifest: Manifest, claims: Claims, first: int) -> None:
        self.claimed: deque[int] = deque()
        self._manifest = manifest
        self._claims = claims
        self._first = first

    def __iter__(self) -> Iterator[list[int]]:
        shard: int | None = self._first
        while shard is not None:
            self.claimed.append(shard)
            rows = self._manifest.shard_range(shard)
            yield from map(list, batches_of(rows, self._manifest.work.batch_size))
            shard = self._claims.claim_next()


def _make_loader(work: _Work, batches: _ClaimedBatches, *, num_left: int) -> DataLoader[InputBatch]:
    cut = work.manifest.work
    per_shard = math.ceil(cut.shard_rows / cut.batch_size)
    workers = min(work.config.workers, per_shard * num_left)
    # Rows given to workers are claimed: at most one shard beyond the current one, unless shards are smaller than the
    # prefetched batches.
    ahead = 2 if 2 * workers <= per_shard else 1
    dataset = inputs_of(
        work.source, work.manifest.views, work.teacher, work.config.store.picture_format
    )
    workers = fit_workers(workers, batch_bytes=cut.batch_size * dataset.row_bytes, ahead=ahead)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        timeout=TIMEOUT_S if workers else 0,
        collate_fn=_same,
        pin_memory=work.teacher.device.type == "cuda",
    )


def _same(batch: Any) -> Any:
    return batch


def _extract_shard(
    work: _Work, number: int, batches: Iterator[InputBatch], *, load_s: float
) -> Shard:
    manifest, rows = work.manifest, work.manifest.shard_range(number)
    shard = _empty_shard(number, manifest, work.source)
    reasons: list[str | None] = []
    pictures: list[bytes] = []
    ragged: dict[str, list[Any]] = {
        name: [] for name, spec in work.teacher.fields.items() if spec.encoding.kind == "ragged"
    }
    seconds = {"load": load_s, "teacher": 0.0}
    ahead: tuple[range, InputBatch, Pending] | None = None
    # Results of a batch are fetched after the next batch was submitted, so that a GPU does not idle.
    for batch_rows in [*batches_of(rows, manifest.work.batch_size), None]:
        start = loaded = time.perf_counter()
        before, ahead = ahead, None
        if batch_rows is not None:
            batch = next(batches).check()
            pictures += batch.pictures
            loaded = time.perf_counter()
            ahead = batch_rows, batch, start_teacher(work.teacher, batch.inputs)
        if before is not None:
            reasons += _keep(work, shard, rows.start, *before, ragged)
        seconds["load"] += loaded - start
        seconds["teacher"] += time.perf_counter() - loaded
        if before is not None:
            work.progress.add(number, len(before[0]), _sum(work.waits, seconds))
    bad = np.array([reason is not None for reason in reasons])
    shard.columns["valid"][:] = ~bad
    for name, spec in work.teacher.fields.items():
        if spec.encoding.kind == "ragged":
            items = [
                [part[:0] if why else part] for part, why in zip(ragged[name], reasons, strict=True)
            ]
            put_ragged(manifest, shard.columns, name, number, items)
            continue
        for column in field_columns(name, manifest.fields[name], len(manifest.views)):
            shard.columns[column.name][bad] = 0
    if pictures:
        usable = zip(pictures, reasons, strict=True)
        files = [np.frombuffer(b"" if why else data, np.uint8) for data, why in usable]
        put_ragged(manifest, shard.columns, PICTURES, number, files)
    shard.reasons, shard.seconds = reasons, seconds
    work.waits.update(_sum(work.waits, seconds))
    return shard


def _keep(
    work: _Work,
    shard: Shard,
    first: int,
    batch_rows: range,
    batch: InputBatch,
    pending: Pending,
    ragged: dict[str, list[Any]],
) -> list[str | None]:
    """Copy a batch into its shard, whose first row is ``first``, and into lists of items of the ragged fields.

    Returns:
        Why each row is unusable, or None.
    """
    features = pending.wait()
    why = refuse_non_finite(features, batch.reasons)
    unusable = [i for i, reason in enumerate(why) if reason is not None]
    at = slice(batch_rows.start - first, batch_rows.stop - first)
    shard.columns["content_sha256"][at] = batch.hashes
    for name, values in features.items():
        if name in ragged:
            ragged[name] += [as_array(items) for items in values]
            continue
        array = as_array(values)
        array[unusable] = 0  # NaN has no code of eight bits
        put(work.manifest, shard.columns, name, at, array, channels=work.channels.get(name))
    return why


def _sum(total: dict[str, float], seconds: dict[str, float]) -> dict[str, float]:
    return {name: value + seconds.get(name, 0.0) for name, value in total.items()}


def _empty_shard(number: int, manifest: Manifest, source: Source) -> Shard:
    rows = manifest.shard_range(number)
    at = slice(rows.start, rows.stop)
    columns = empty_columns(manifest, number)
    columns["sample_id"][:] = source.sample_ids[at]
    if manifest.source.has_labels:
        labels = np.full(len(rows), NO_LABEL) if source.labels is None else source.labels[at]
        columns["label"][:] = labels
    return Shard(number, columns, [], {})


def refuse_non_finite(features: Features, reasons: Sequence[str | None]) -> list[str | None]:
    """Return the reasons, with one for every row whose features hold NaN or infinity.

    Args:
        features: by field, (B, V, *shape).
        reasons: per row, why it is unusable already, or None.
    """
    out = list(reasons)
    for name, values in features.items():
        if isinstance(values, list):
            finite = torch.tensor([bool(torch.isfinite(items).all()) for items in values])
            values = values[0]
        else:
            finite = torch.isfinite(values.flatten(1)).all(dim=1)
        for i in (~finite).nonzero().flatten().tolist():
            out[i] = out[i] or (
                f'the teacher\'s field "{name}" is not finite as {str(values.dtype).removeprefix("torch.")}; '
                "if it overflowed, use --store.dtype float32 or --teacher.precision fp32"
            )
    return out
