"""Stores that several processes write into a bucket, with nothing but the bucket in common."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from featstore import FeatureStore
from featstore.format.manifest import Manifest
from featstore.places.base import Retry
from featstore.reading.cached.cache import CacheConfig
from featstore.sharing.verify_url import verify_url
from featstore.writing.bucket import BucketStore
from featstore.writing.claims import Claims
from featstore.writing.fill import Filled, fill
from featstore.writing.shard import Shard
from tests.featstore.jobs import MANIFEST, run_job
from tests.featstore.stores import make_columns, snapshot
from tests.servers.fixtures import OwnBucket

QUICK = Retry(attempts=4, first_s=0.02, timeout_s=5)


def run_bucket_job(
    url: str,
    manifest: Manifest = MANIFEST,
    *,
    lease_s: float = 60,
    artefacts: Mapping[str, bytes] | None = None,
    seed: int = 0,
) -> Filled:
    """Make the store if it is not there, and work until it is complete."""
    values = make_columns(manifest, seed=seed)

    def make_shards(claims: Claims, first: int) -> Iterator[Shard]:
        for number in chain([first], iter(claims.claim_next, None)):
            rows = manifest.shard_range(number)
            part = {name: column[rows.start : rows.stop] for name, column in values.items()}
            yield Shard(number, part, [None] * len(rows), {})

    with BucketStore(url, retry=QUICK) as bucket:
        _, complete = bucket.begin(manifest, artefacts or {})
        return Filled() if complete else fill(bucket, make_shards, lease_s=lease_s)


def fetched(s3: OwnBucket, folder: Path, name: str = "s") -> dict[str, Any]:
    """What is at the place, as ``snapshot`` of a folder."""
    for file, data in s3.files(name).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    return snapshot(folder)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files of a store that one job made in a folder."""
    path = tmp_path_factory.mktemp("straight") / "s"
    run_job(path)
    return snapshot(path)


def test_one_job(s3: OwnBucket, straight: dict[str, Any], tmp_path: Path) -> None:
    """The bucket holds what a folder would hold, and nothing else; a second run does nothing."""
    url = f"{s3.url}/s"
    assert run_bucket_job(url).rows == MANIFEST.num_rows
    assert fetched(s3, tmp_path / "copy") == straight
    assert not [name for name in s3.names() if "lease" in name or "partial" in name]
    assert run_bucket_job(url).rows == 0
    assert verify_url(url).sound
    store = FeatureStore.open(url, cache=CacheConfig(folder=tmp_path / "cache"))
    assert store.complete
    assert store.num_rows == MANIFEST.num_rows
