"""Plan an extraction: measure the first batches and estimate cost."""

from pathlib import Path

from featstore.extraction.config import ExtractConfig
from featstore.extraction.images import ViewDataset
from featstore.extraction.shards import run_teacher
from featstore.extraction.teachers import Teacher
from featstore.files.disk import measure_disk, measure_rate
from featstore.format.manifest import MANIFEST_NAME, Manifest, check_same_contract
from featstore.planning.costs import Plan, Rates, make_plan
from featstore.reading.store import FeatureStore
from featstore.sources import Source


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
    dataset = ViewDataset(source, manifest.views, teacher.preprocessing)
    rows = list(range(min(config.batch_size, len(source))))
    batch = dataset.load(rows)
    few = rows[:8]

    def decode() -> int:
        dataset.load(few)
        return len(few)

    def forward() -> int:
        run_teacher(teacher, batch.images)
        return len(rows)

    return Rates(
        teacher=measure_rate(forward, seconds=2.0),
        decode=measure_rate(decode, seconds=0.5) * max(1, config.workers),
        disk=measure_disk(Path(config.store.path)),
    )
