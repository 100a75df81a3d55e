"""Cost of an experiment: one extraction, compared with a live teacher in every run."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from distill.config import DistillConfig
from distill.experiments.plan import PlannedRun
from featstore import FeatureStore
from featstore.format.ledger import read_complete

COUNTED_SHARDS = 1000
"""Most entries of a ledger that are read for the teacher's time; of a longer one every k-th counts k times."""


@dataclass(frozen=True)
class StoreCost:
    """What one store cost, once."""

    path: str  # of the store
    images: int  # rows
    views: int  # of each image
    bytes: int  # of all shards
    # of extraction by part (load, teacher, write), summed over its processes
    seconds: dict[str, float]

    @property
    def teacher_s(self) -> float:
        """Seconds of the teacher for one view of one image."""
        return self.seconds.get("teacher", 0.0) / max(1, self.images * self.views)


@dataclass(frozen=True)
class ExperimentCost:
    """Cost of the extraction and of live teachers."""

    stores: list[StoreCost]  # that the runs read
    runs: int  # finished ones, tuning included
    hours: float  # of training these, summed
    teacher_images: int  # how often a step of theirs used the stored features of an image
    # of the teacher in all runs together, had it run live in each; an estimate: the seconds of one image in the ledger,
    # times ``teacher_images``. None if no ledger holds seconds.
    live_hours: float | None


def cost_of(finished: Iterable[tuple[PlannedRun, dict[str, Any]]]) -> ExperimentCost:
    """Sum up what stores and finished runs cost. Raises StoreError: a store is gone."""
    pairs = list(finished)
    paths = dict.fromkeys(path for run, _ in pairs for path in _stores_of(run.config))
    stores = {path: store_cost(FeatureStore.open(path)) for path in paths}
    used = [int(record.get("teacher_images", 0)) for _, record in pairs]
    live_s = sum(
        images * sum(stores[path].teacher_s for path in _stores_of(run.config))
        for (run, _), images in zip(pairs, used, strict=True)
    )
    return ExperimentCost(
        stores=list(stores.values()),
        runs=len(pairs),
        hours=sum(float(record["seconds"]) for _, record in pairs) / 3600,
        teacher_images=sum(used),
        live_hours=live_s / 3600 if any(store.teacher_s for store in stores.values()) else None,
    )


def store_cost(store: FeatureStore) -> StoreCost:
    """Bytes and seconds of one store, from its ledger."""
    step = -(-len(store.shards) // COUNTED_SHARDS)
    entries = store.entries(store.shards[::step])
    seconds = Counter[str]()
    for entry in entries:
        seconds.update(entry.seconds)
    scale = len(store.shards) / max(1, len(entries))
    mark = read_complete(store.path, store.manifest.num_shards)
    size = sum(item.bytes for entry in entries for item in entry.objects.values())
    return StoreCost(
        path=store.address,
        images=store.num_rows,
        views=len(store.manifest.views),
        bytes=round(size * scale) if mark is None else mark.bytes,
        seconds={name: value * scale for name, value in sorted(seconds.items())},
    )


def _stores_of(config: DistillConfig) -> list[str]:
    return [config.store, *(teacher.store for teacher in config.teachers)]
