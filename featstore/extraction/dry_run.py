"""Plan an extraction: measure teacher, decoding and disk for some seconds, and estimate the cost."""

import time
from pathlib import Path

import torch
from torch import Tensor

from featstore.extraction.config import ExtractConfig
from featstore.extraction.images import inputs_of
from featstore.extraction.shards import run_teacher
from featstore.extraction.teachers import Teacher
from featstore.files.disk import measure_disk, measure_rate
from featstore.format.manifest import MANIFEST_NAME, Manifest, check_same_contract
from featstore.format.views import ViewSet
from featstore.planning.costs import Plan, Rates, make_plan
from featstore.reading.store import FeatureStore
from featstore.sources import Source
from featstore.writing.bucket import BucketStore

TEACHER_S = 2.0  # time for which the teacher is measured, seconds


def plan_run(
    config: ExtractConfig,
    *,
    manifest: Manifest,
    source: Source,
    teacher: Teacher,
    processes: int,
    rates: Rates | None = None,
    bucket: BucketStore | None = None,
) -> Plan:
    """Estimate what is left to do.

    Args:
        rates: measured before; None measures now, if anything is left to do.
        bucket: The store, if it is in a bucket; ``config.store.path`` is then its local copy.

    Raises:
        ManifestMismatch: the store is there and was made with other settings.
        StoreWriteError: no space, or no right to write.
    """
    store = Path(config.store.path)
    pending = manifest.num_shards
    if (store / MANIFEST_NAME).exists():
        found = FeatureStore.open(store, allow_incomplete=True)
        check_same_contract(store, found=found.manifest, expected=manifest)
        pending -= len(bucket.committed() if bucket else found.shards)
    # Space first: it needs no measurement, and a full disk should not cost the wait.
    folder = None if bucket else store
    plan = make_plan(manifest, store=folder, pending=pending, rates=None, processes=processes)
    if pending:
        rates = rates or measure_rates(
            config, views=manifest.views, source=source, teacher=teacher, disk=bucket is None
        )
        plan = make_plan(manifest, store=folder, pending=pending, rates=rates, processes=processes)
    return plan


def measure_rates(
    config: ExtractConfig, *, views: ViewSet, source: Source, teacher: Teacher, disk: bool = True
) -> Rates:
    """Time the teacher on as many real images as it does in two seconds, decoding on a few, and the disk on 64 MiB.

    Args:
        disk: Whether the store is in a folder.
    """
    dataset = inputs_of(source, views, teacher, config.store.picture_format)
    few = dataset.load(range(min(8, len(source))))

    def decode() -> int:
        return len(dataset.load(range(len(few.reasons))).reasons)

    # Batches grow while they are quick: a whole batch of a slow teacher can take minutes. The first pass is cold.
    run_teacher(teacher, few.inputs[:2])
    count, seconds = 1, 0.0
    while count < config.batch_size and seconds < TEACHER_S / 4:
        count = min(config.batch_size, 2 * count)
        inputs = _repeated(few.inputs, count)
        start = time.perf_counter()
        run_teacher(teacher, inputs)
        seconds = time.perf_counter() - start
    inputs = _repeated(few.inputs, count)

    def forward() -> int:
        run_teacher(teacher, inputs)
        return count

    return Rates(
        teacher=measure_rate(forward, seconds=TEACHER_S),
        decode=measure_rate(decode, seconds=0.5) * max(1, config.workers),
        disk=measure_disk(Path(config.store.path)) if disk else None,
    )


def _repeated(inputs: Tensor, count: int) -> Tensor:
    """The first ``count`` rows, from the first again where there are fewer."""
    return inputs[torch.arange(count) % len(inputs)]
