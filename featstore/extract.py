"""Phase one: images -> frozen teacher -> store. No argument parsing, nothing printed but the progress bar.

Work is cut into shards, and batches are cut inside shards, always in the same places: a teacher's last bits depend on
how images are grouped, so only then do a resumed run and a run with more processes give the same bytes.
"""

# B images of a batch, V views, H W input pixels

import math
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from featstore import __version__
from featstore.backends import ZarrBackend
from featstore.backends.base import Array
from featstore.config import ExtractConfig
from featstore.decode import decode_image
from featstore.errors import DecodeError, TooManyInvalid, shorten
from featstore.ids import content_sha256, ids_sha256
from featstore.ledger import InvalidRow, pending_shards
from featstore.manifest import (
    MANIFEST_NAME,
    Manifest,
    PreprocessingRecord,
    SourceRecord,
    WorkRecord,
    check_same_contract,
    new_manifest,
    read_manifest,
)
from featstore.plan import Plan, Rates, make_plan, measure_disk, measure_rate, shard_rows
from featstore.reader import FeatureStore
from featstore.sources import NO_LABEL, Source
from featstore.teachers import Precision, Teacher, best_precision
from featstore.views import ViewSet, cut, make_views, view_box
from featstore.writer import (
    Shard,
    ShardWriter,
    exclusive,
    open_or_create,
    remove_leftovers,
    text_column,
)

PARTS = ("load", "teacher", "write")
"""What a process can be waiting for."""


@dataclass
class Batch:
    """Decoded images of consecutive rows.

    Attributes:
        images: (B, V, 3, H, W) uint8; zeros where the image is unusable.
        hashes: (B, 32) uint8, SHA-256 of the files; zeros where the file could not be read.
        reasons: per row, why it is unusable, or None.
    """

    images: Tensor
    hashes: Array
    reasons: list[str | None]


class ViewDataset(Dataset[Batch]):
    """Reads, hashes and decodes the images of a list of rows, and cuts every view at the teacher's size."""

    def __init__(self, source: Source, views: ViewSet, preprocessing: PreprocessingRecord) -> None:
        self.source = source
        self.views = views
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Load one batch; an image that cannot be used becomes zeros and a reason, never an exception."""
        height, width = self.preprocessing.size
        images = np.zeros((len(rows), len(self.views), height, width, 3), dtype=np.uint8)
        hashes = np.zeros((len(rows), 32), dtype=np.uint8)
        reasons: list[str | None] = [None] * len(rows)
        for i, row in enumerate(rows):
            try:
                data = self.source.read(row)
                hashes[i] = np.frombuffer(content_sha256(data), dtype=np.uint8)
                self._cut_views(data, self.source.sample_ids[row], out=images[i])
            except DecodeError as error:
                reasons[i] = str(error)
            except OSError as error:
                reasons[i] = f"cannot be read: {error.strerror or error}"
        return Batch(torch.from_numpy(images).permute(0, 1, 4, 2, 3), hashes, reasons)

    def _cut_views(self, data: bytes, sample_id: str, *, out: Array) -> None:
        image = decode_image(data)
        rule = self.preprocessing
        for v, view in enumerate(self.views.views):
            box = view_box(
                view,
                self.views,
                sample_id=sample_id,
                width=image.width,
                height=image.height,
                size=rule.size,
                crop_pct=rule.crop_pct,
                crop_mode=rule.crop_mode,
            )
            out[v] = cut(
                image,
                box,
                size=rule.size,
                interpolation=rule.interpolation,
                mirrored=view.mirrored,
            )


def resolve_precision(config: ExtractConfig, device: torch.device) -> Precision:
    """Settle ``teacher.precision``: as asked; else as the store was made; else what the hardware does best."""
    if config.teacher.precision != "auto":
        return config.teacher.precision
    store = Path(config.store.path)
    if (store / MANIFEST_NAME).exists():
        return read_manifest(store).teacher.precision
    return best_precision(device)


def describe_store(config: ExtractConfig, *, source: Source, teacher: Teacher) -> Manifest:
    """Build the manifest that a store made with these settings has."""
    views = ViewSet(
        seed=config.views.seed,
        scale=(config.views.scale[0], config.views.scale[1]),
        ratio=(config.views.ratio[0], config.views.ratio[1]),
        views=make_views(
            canonical=config.views.canonical,
            seeded=config.views.seeded,
            mirrored=config.views.mirrored,
        ),
    )
    rows = shard_rows(
        teacher.fields,
        num_views=len(views),
        most_rows=config.store.shard_rows,
        most_mb=config.store.shard_mb,
    )
    return new_manifest(
        teacher=teacher.record,
        preprocessing=teacher.preprocessing,
        views=views,
        fields=teacher.fields,
        source=SourceRecord(
            kind=source.kind,
            uri=source.uri,
            num_samples=len(source),
            ids_sha256=ids_sha256(source.sample_ids),
            has_labels=source.labels is not None,
            class_names=source.class_names,
        ),
        work=WorkRecord(shard_rows=rows, batch_size=config.batch_size),
        created_by={
            "featstore": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm", "open_clip_torch", "pillow")},
        },
    )


def plan_run(
    config: ExtractConfig,
    *,
    manifest: Manifest,
    source: Source,
    teacher: Teacher,
    processes: int,
) -> Plan:
    """Measure teacher, decoding and disk for a few seconds, and reckon what is left to do.

    Raises:
        ManifestMismatch: the store is there and was made with other settings.
        StoreWriteError: no space, or no right to write.
    """
    store = Path(config.store.path)
    pending = manifest.num_shards
    if (store / MANIFEST_NAME).exists():
        found = FeatureStore.open(store, allow_incomplete=True)
        check_same_contract(store, found=found.manifest, expected=manifest)
        pending -= len(found.shards)
    # Space first: it needs no measurement, and a full disk should not cost the wait.
    plan = make_plan(manifest, store=store, pending=pending, rates=None, processes=processes)
    if pending:
        rates = measure(config, manifest=manifest, source=source, teacher=teacher)
        plan = make_plan(manifest, store=store, pending=pending, rates=rates, processes=processes)
    return plan


def measure(
    config: ExtractConfig, *, manifest: Manifest, source: Source, teacher: Teacher
) -> Rates:
    """Time the teacher on one real batch, decoding on a few images, and the disk on 64 MiB."""
    dataset = ViewDataset(source, manifest.views, manifest.preprocessing)
    rows = list(range(min(config.batch_size, len(source))))
    batch = dataset.__getitems__(rows)
    few = rows[:8]

    def decode() -> int:
        dataset.__getitems__(few)
        return len(few)

    def forward() -> int:
        run_teacher(teacher, batch.images)
        return len(rows)

    return Rates(
        teacher=measure_rate(forward, seconds=2.0),
        decode=measure_rate(decode, seconds=0.5) * max(1, config.workers),
        disk=measure_disk(Path(config.store.path)),
    )


def run_teacher(teacher: Teacher, images: Tensor) -> dict[str, Tensor]:
    """Run every view of a batch through the teacher.

    Args:
        teacher: the frozen model.
        images: (B, V, 3, H, W) uint8.

    Returns:
        By field, (B, V, *shape) on the CPU, in the dtype that is stored.
    """
    # One view at a time: memory does not grow with the number of views, and the batch stays the same size.
    outputs = [teacher.features(images[:, v]) for v in range(images.shape[1])]
    stored = {"float16": torch.float16, "float32": torch.float32}
    return {
        name: torch.stack([output[name] for output in outputs], dim=1).to(stored[spec.dtype]).cpu()
        for name, spec in teacher.fields.items()
    }


@dataclass
class Summary:
    """How a run ended.

    Attributes:
        store: folder of the store.
        rows: images of the store.
        written: images this run, all processes together, put into it.
        invalid: every unusable image of the store.
        seconds: wall time of the run.
        waits: seconds this process spent per part.
    """

    store: Path
    rows: int
    written: int
    invalid: list[InvalidRow]
    seconds: float
    waits: dict[str, float] = field(default_factory=dict)

    @property
    def invalid_share(self) -> float:
        """Share of the store's rows that are unusable."""
        return len(self.invalid) / self.rows

    def check(self, most: float) -> None:
        """Raise when too many images were unusable.

        Raises:
            TooManyInvalid: the share is above ``most``.
        """
        if self.invalid_share > most:
            examples = shorten([f"{item.sample_id} ({item.reason})" for item in self.invalid], 3)
            raise TooManyInvalid(
                f"{self.store}: {len(self.invalid)} of {self.rows} images are unusable "
                f"({self.invalid_share:.1%}, allowed {most:.1%}): {examples}. The store is complete and "
                f"the others are sound. List them: featstore inspect {self.store}. Accept them: "
                f"--max_invalid_share {math.ceil(1000 * self.invalid_share) / 1000}"
            )


def run(
    config: ExtractConfig,
    *,
    manifest: Manifest,
    source: Source,
    teacher: Teacher,
    accelerator: Accelerator,
) -> Summary:
    """Fill the store: make it if it is not there, go on if it is.

    Every process takes its share of the missing shards, one at a time.

    Raises:
        ManifestMismatch, StoreBusy, StoreWriteError: see ``featstore.errors``.
    """
    start = time.perf_counter()
    store = Path(config.store.path)
    if accelerator.is_main_process:
        manifest = open_or_create(store, manifest)
    with exclusive(store) if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            remove_leftovers(store)
        todo: list[Any] = [
            pending_shards(store, manifest.num_shards) if accelerator.is_main_process else None
        ]
        broadcast_object_list(todo)
        shards = cast(list[int], todo[0])
        mine = shards[accelerator.process_index :: accelerator.num_processes]
        waits = _fill(
            config, manifest, source, teacher, shards=mine, show=accelerator.is_main_process
        )
        accelerator.wait_for_everyone()
    done = FeatureStore.open(store)
    return Summary(
        store=store,
        rows=manifest.num_rows,
        written=sum(len(manifest.shard_range(shard)) for shard in shards),
        invalid=done.invalid_rows(),
        seconds=time.perf_counter() - start,
        waits=waits,
    )


def batches_of(rows: range, batch_size: int) -> list[range]:
    """Cut the rows of one shard into batches, always in the same places."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def _fill(
    config: ExtractConfig,
    manifest: Manifest,
    source: Source,
    teacher: Teacher,
    *,
    shards: Sequence[int],
    show: bool,
) -> dict[str, float]:
    """Extract the given shards and commit them; returns the seconds spent waiting per part."""
    total = dict.fromkeys(PARTS, 0.0)
    loader = iter(_make_loader(config, manifest, source, shards, pin=teacher.device.type == "cuda"))
    rows = sum(len(manifest.shard_range(shard)) for shard in shards)
    with (
        tqdm(total=rows, unit=" images", disable=not show, smoothing=0.1) as bar,
        ShardWriter(ZarrBackend(Path(config.store.path), manifest)) as writer,
    ):
        for number in shards:
            shard = _extract_shard(number, manifest, source, teacher, loader, bar, total)
            start = time.perf_counter()
            writer.submit(shard)
            total["write"] += time.perf_counter() - start
        start = time.perf_counter()
    total["write"] += time.perf_counter() - start
    return total


def _make_loader(
    config: ExtractConfig, manifest: Manifest, source: Source, shards: Sequence[int], *, pin: bool
) -> DataLoader[Batch]:
    batches = [
        list(batch)
        for shard in shards
        for batch in batches_of(manifest.shard_range(shard), manifest.work.batch_size)
    ]
    return DataLoader(
        ViewDataset(source, manifest.views, manifest.preprocessing),
        batch_sampler=batches,
        num_workers=min(config.workers, len(batches)),
        collate_fn=_same,
        pin_memory=pin,
    )


def _same(batch: Any) -> Any:
    return batch


def _extract_shard(
    number: int,
    manifest: Manifest,
    source: Source,
    teacher: Teacher,
    loader: Iterator[Batch],
    bar: "tqdm[Any]",
    total: dict[str, float],
) -> Shard:
    rows = manifest.shard_range(number)
    shard = _empty_shard(number, manifest, source)
    reasons: list[str | None] = []
    seconds = dict.fromkeys(("load", "teacher"), 0.0)
    for batch_rows in batches_of(rows, manifest.work.batch_size):
        start = time.perf_counter()
        batch = next(loader)
        loaded = time.perf_counter()
        features = run_teacher(teacher, batch.images)
        at = slice(batch_rows.start - rows.start, batch_rows.stop - rows.start)
        shard.columns["content_sha256"][at] = batch.hashes
        for name, values in features.items():
            shard.columns[f"fields/{name}"][at] = values.numpy()
        reasons += refuse_non_finite(features, batch.reasons)
        seconds["load"] += loaded - start
        seconds["teacher"] += time.perf_counter() - loaded
        _show_progress(bar, len(batch_rows), {**total, **_sum(total, seconds)})
    bad = np.array([reason is not None for reason in reasons])
    shard.columns["valid"][:] = ~bad
    for name in manifest.fields:
        shard.columns[f"fields/{name}"][bad] = 0
    shard.reasons, shard.seconds = reasons, seconds
    total.update(_sum(total, seconds))
    return shard


def _sum(total: dict[str, float], seconds: dict[str, float]) -> dict[str, float]:
    return {name: total[name] + value for name, value in seconds.items()}


def _empty_shard(number: int, manifest: Manifest, source: Source) -> Shard:
    rows = manifest.shard_range(number)
    at = slice(rows.start, rows.stop)
    columns: dict[str, Array] = {
        "sample_id": text_column(source.sample_ids[at]),
        "content_sha256": np.zeros((len(rows), 32), dtype=np.uint8),
        "valid": np.zeros(len(rows), dtype=np.bool_),
    }
    if manifest.source.has_labels:
        labels = np.full(len(rows), NO_LABEL) if source.labels is None else source.labels[at]
        columns["label"] = labels.astype(np.int64)
    for name, spec in manifest.fields.items():
        shape = (len(rows), len(manifest.views), *spec.shape)
        columns[f"fields/{name}"] = np.zeros(shape, dtype=spec.dtype)
    return Shard(number, columns, [], {})


def refuse_non_finite(
    features: dict[str, Tensor], reasons: Sequence[str | None]
) -> list[str | None]:
    """Give a reason to every row whose features hold NaN or infinity.

    Args:
        features: by field, (B, V, *shape).
        reasons: per row, why it is unusable already, or None.
    """
    out = list(reasons)
    for name, values in features.items():
        finite = torch.isfinite(values.flatten(1)).all(dim=1)
        for i in (~finite).nonzero().flatten().tolist():
            out[i] = out[i] or (
                f'the teacher\'s field "{name}" is not finite as {str(values.dtype).removeprefix("torch.")}; '
                "if it overflowed, use --store.dtype float32 or --teacher.precision fp32"
            )
    return out


def _show_progress(bar: "tqdm[Any]", images: int, seconds: dict[str, float]) -> None:
    whole = sum(seconds.values()) or 1.0
    shares = " ".join(f"{name} {seconds[name] / whole:.0%}" for name in PARTS)
    bar.set_postfix_str(shares, refresh=False)
    bar.update(images)
