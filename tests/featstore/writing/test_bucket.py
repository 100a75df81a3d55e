"""Stores that several processes write into a bucket, with nothing but the bucket in common."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from hashlib import md5
from http.server import BaseHTTPRequestHandler
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.errors import (
    ConfigError,
    ManifestMismatch,
    RemoteError,
    StoreIncomplete,
    StoreNotFound,
)
from featstore.format.artefacts import artefact_record, pack
from featstore.format.checksummed_json import seal
from featstore.format.manifest import Manifest
from featstore.places.base import Retry
from featstore.places.open_place import open_place
from featstore.reading.cached.cache import CacheConfig
from featstore.sharing.verify_url import verify_url
from featstore.writing.bucket import DESIGN_NAME, BucketStore
from featstore.writing.claims import Claims
from featstore.writing.fill import Filled, fill
from featstore.writing.shard import Shard
from tests.featstore.jobs import MANIFEST, run_job
from tests.featstore.stores import field, make_columns, make_manifest, snapshot
from tests.servers import faults
from tests.servers.answers import serve_answers
from tests.servers.azure import Azure
from tests.servers.faults import Plan
from tests.servers.fixtures import MakeProxy, OwnBucket

QUICK = Retry(attempts=8, first_s=0.002, most_s=0.02, timeout_s=5)

STRIDE = int(os.environ.get("FEATSTORE_KILL_STRIDE", "3"))
"""A kill before every third request that changes the bucket; 1 for each."""

SMALL = make_manifest(num_rows=5, shard_rows=2, views=1, fields={"cls": field(3)}, labels=False)
"""3 shards of 4 objects each."""


def run_bucket_job(
    url: str,
    manifest: Manifest = MANIFEST,
    *,
    lease_s: float = 60,
    artefacts: Mapping[str, bytes] | None = None,
    seed: int = 0,
    change: Callable[[BucketStore], object] = lambda bucket: None,
) -> Filled:
    """Make the store if it is not there, and work until it is complete.

    Args:
        seed: Of the values: processes with different ones stand for hardware whose bits differ.
        change: Called with the destination first.
    """
    values = make_columns(manifest, seed=seed)

    def make_shards(claims: Claims, first: int) -> Iterator[Shard]:
        for number in chain([first], iter(claims.claim_next, None)):
            rows = manifest.shard_range(number)
            part = {name: column[rows.start : rows.stop] for name, column in values.items()}
            yield Shard(number, part, [None] * len(rows), {})

    with BucketStore(url, retry=QUICK) as bucket:
        change(bucket)
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


def test_objects_of_a_shard_are_sent_at_the_same_time(
    s3: OwnBucket, straight: dict[str, Any], tmp_path: Path
) -> None:
    """Each waits until another one is on its way; the bytes and the order in the ledger are those of a folder."""
    meeting = threading.Barrier(2)

    def meet(bucket: BucketStore) -> None:
        put = bucket._put_object

        def put_object(shard: int, name: str, data: bytes) -> bool:
            meeting.wait(timeout=30)
            return put(shard, name, data)

        bucket._put_object = put_object  # type: ignore[method-assign]

    run_bucket_job(f"{s3.url}/s", change=meet)
    assert fetched(s3, tmp_path / "copy") == straight


def test_one_object_that_fails_ends_the_shard(s3: OwnBucket) -> None:
    """No entry is written, whichever object it is; the next run writes the shard."""
    for number in range(4):
        url, left = f"{s3.url}/s{number}", [number]

        def fail(bucket: BucketStore, left: list[int] = left) -> None:
            put = bucket._put_object

            def put_object(shard: int, name: str, data: bytes) -> bool:
                if not left[0]:
                    raise RemoteError("no more")
                left[0] -= 1
                return put(shard, name, data)

            bucket._put_object = put_object  # type: ignore[method-assign]

        with pytest.raises(RemoteError, match="no more"):
            run_bucket_job(url, SMALL, change=fail)
        assert not [key for key in s3.names() if f"s{number}/ledger/0" in key]
        run_bucket_job(url, SMALL, lease_s=0.2)
        assert s3_has_mark(s3, f"s{number}")


class Death:
    """Lets no request of a destination through after the n-th one that changes something: as kill -9 does.

    Args:
        step: Number of such requests that are made.

    Attributes:
        reached: Whether it has come to it.
    """

    def __init__(self, step: int) -> None:
        self.reached = False
        self._left = step

    def __call__(self, bucket: BucketStore) -> None:
        place: Any = bucket.place
        for name in ("_put_if", "_write", "_remove", "_tag", "_entity_tags", "_pieces", "_size"):
            setattr(place, name, self._wrap(name, getattr(place, name)))

    def _wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def request(*arguments: Any) -> Any:
            changes = name in ("_put_if", "_write", "_remove")
            if self._left <= 0 and (changes or self.reached):
                self.reached = True
                raise RemoteError("killed")
            self._left -= changes
            return original(*arguments)

        return request


def with_artefact() -> tuple[Manifest, dict[str, bytes]]:
    """A store with an artefact."""
    data = pack({"weight": np.ones(3, dtype=np.float32)})
    record = artefact_record(data, meaning="test", teacher="teacher")
    return SMALL.model_copy(update={"artefacts": {"head": record}}), {"head": data}


@pytest.mark.slow
def test_a_kill_at_many_steps(s3: OwnBucket, tmp_path: Path) -> None:
    """Before a request that changes the bucket: readers see no half store, the next job completes it, and nothing
    is left over.
    """
    manifest, files = with_artefact()
    run_bucket_job(f"{s3.url}/whole", manifest, artefacts=files)
    expected = fetched(s3, tmp_path / "whole", "whole")
    for step in range(0, 300, STRIDE):
        death, name = Death(step), f"s{step}"
        url = f"{s3.url}/{name}"
        try:
            run_bucket_job(url, manifest, artefacts=files, change=death)
        except RemoteError:
            assert death.reached
        if not death.reached:
            break
        with (
            pytest.raises((StoreIncomplete, StoreNotFound))
            if not s3_has_mark(s3, name)
            else nullcontext()
        ):
            FeatureStore.open(url, cache=CacheConfig(folder=tmp_path / "cache"))
        run_bucket_job(url, manifest, artefacts=files, lease_s=0.2)
        assert fetched(s3, tmp_path / name, name) == expected
    assert step > 30


def s3_has_mark(s3: OwnBucket, name: str) -> bool:
    """Whether a store is marked as complete."""
    return f"{name}/ledger/complete.json" in s3.names()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Consolidated metadata")  # hidden by the code, not in threads
def test_many_jobs_whose_bits_differ(s3: OwnBucket, tmp_path: Path) -> None:
    """Four jobs at once, also at the creation: every shard is whole, of one of them, and no job fails."""
    url = f"{s3.url}/s"
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(run_bucket_job, url, seed=seed) for seed in range(4)]
    assert sum(job.result().rows for job in jobs) == MANIFEST.num_rows
    check_whole(url, tmp_path, seeds=range(4))


def check_whole(url: str, tmp_path: Path, seeds: range) -> set[int]:
    """Every shard is sound, and of one job; returns the seeds of the jobs."""
    report = verify_url(url)
    assert report.sound, report.damages
    store = FeatureStore.open(url, cache=CacheConfig(folder=tmp_path / "cache"))
    found = set()
    for shard in range(MANIFEST.num_shards):
        rows = store.manifest.shard_range(shard)
        made = [
            {n: c[rows.start : rows.stop] for n, c in make_columns(MANIFEST, seed=seed).items()}
            for seed in seeds
        ]
        names = ("content_sha256", "fields/cls")
        same = [
            all(np.array_equal(store.read_shard(shard, name), one[name]) for name in names)
            for one in made
        ]
        assert sum(same) == 1, shard
        found.add(same.index(True))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_one_that_comes_back_after_its_lease(s3: OwnBucket, tmp_path: Path, after: int) -> None:
    """A job that stops in the middle of an upload for longer than its lease, without a beat, replaces nothing of the
    job that took over, whose bits are others.
    """
    url, stopped, go_on = f"{s3.url}/s", threading.Event(), threading.Event()

    def stop_once(bucket: BucketStore) -> None:
        original, left = bucket.place._put_if, [after]

        def put(name: str, data: bytes, tag: Any) -> Any:
            left[0] -= "/c/" in name or name.startswith("ledger/")
            if left[0] < 0 and not go_on.is_set():
                stopped.set()
                assert go_on.wait(60)
            return original(name, data, tag)

        bucket.place._put_if = put  # type: ignore[method-assign]

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(run_bucket_job, url, seed=0, lease_s=0.3, change=stop_once)
        assert stopped.wait(60)
        rows = run_bucket_job(url, seed=1, lease_s=0.3).rows
        go_on.set()
        slow.result()
    assert rows == MANIFEST.num_rows
    assert check_whole(url, tmp_path, range(2)) == {1}


@pytest.mark.slow
def test_azure(azure: Azure, straight: dict[str, Any], tmp_path: Path) -> None:
    """Azure lists entity tags in another form than it answers: what a dead job holds is taken over all the same."""
    url = "az://box/s"
    with pytest.raises(RemoteError):
        run_bucket_job(url, change=Death(16))
    assert run_bucket_job(url, lease_s=0.5).rows > 0
    place = open_place(url)
    for name in place.sizes():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(place.read(name, most_bytes=2**20))
    assert snapshot(tmp_path / "copy") == straight
    assert verify_url(url).sound
    with pytest.raises(RemoteError, match="no such bucket") as missing:
        verify_url("az://nowhere/s")
    assert "\n" not in str(missing.value)


def test_leases_need_no_clock(s3: OwnBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose wall clock is an hour off, in either direction, takes over what a dead one holds after the lease."""
    for number, hours in enumerate((-1, 1)):
        url = f"{s3.url}/s{number}"
        with pytest.raises(RemoteError):
            run_bucket_job(url, SMALL, change=Death(16))
        now = time.time
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda now=now, hours=hours: now() + 3600 * hours)
            start = time.monotonic()
            assert run_bucket_job(url, SMALL, lease_s=0.5).rows > 0
            assert time.monotonic() - start >= 0.5


def test_other_stores_and_files(s3: OwnBucket) -> None:
    """A prefix with another store, or with other files, is refused, and stays as it is."""
    run_bucket_job(f"{s3.url}/s", SMALL)
    s3.put("other/notes.txt", b"text")
    before = s3.files()
    with pytest.raises(ManifestMismatch, match="num_samples"):
        run_bucket_job(f"{s3.url}/s", MANIFEST)
    with pytest.raises(StoreNotFound, match=r"notes\.txt"):
        run_bucket_job(f"{s3.url}/other", SMALL)
    assert [name for name in s3.files() if "probe" not in name] == list(before)


def test_two_stores_at_one_prefix_at_once(
    s3: OwnBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that finds nothing, and another is created before it creates its own: refused; the other one is whole."""
    run_bucket_job(f"{s3.url}/alone", SMALL)

    def change(bucket: BucketStore) -> None:
        create = bucket._create

        def late(*arguments: Any) -> None:
            run_bucket_job(f"{s3.url}/s", SMALL)
            create(*arguments)

        monkeypatch.setattr(bucket, "_create", late)

    with pytest.raises(ManifestMismatch, match="num_samples"):
        run_bucket_job(f"{s3.url}/s", MANIFEST, change=change)
    assert fetched(s3, tmp_path / "s") == fetched(s3, tmp_path / "alone", "alone")


def test_a_damaged_design(s3: OwnBucket) -> None:
    """A flipped bit in what a killed process left of a creation is found, and deleting it is enough."""
    content = seal({"artefacts": {}, "manifest": "e30="})
    s3.put(f"s/{DESIGN_NAME}", content.replace(b"e30=", b"e31="))
    with pytest.raises(StoreNotFound, match=DESIGN_NAME):
        run_bucket_job(f"{s3.url}/s", SMALL)
    assert list(s3.files("s")) == [DESIGN_NAME]
    s3.delete(f"s/{DESIGN_NAME}")
    run_bucket_job(f"{s3.url}/s", SMALL)


@pytest.mark.parametrize(
    "url", ["https://example.org/s", "sftp://example.org/s", "hf://datasets/a/b"]
)
def test_places_without_conditions(url: str) -> None:
    """They are refused before a request is made, with what to do."""
    with pytest.raises(ConfigError, match="featstore push FOLDER"):
        BucketStore(url)


DELETED = b"<DeleteResult><Deleted><Key>key</Key></Deleted></DeleteResult>"

REFUSALS = [
    (403, "AccessDenied", "AWS_ACCESS_KEY_ID"),
    (403, "RequestTimeTooSkewed", "clock"),
    (400, "ExpiredToken", "new credentials"),
    (301, "PermanentRedirect", "AWS_REGION"),
    (501, "NotImplemented", "featstore push FOLDER"),
    (404, "NoSuchBucket", "no such bucket"),
    (507, "XMinioStorageFull", "bucket is full"),
]


@pytest.mark.parametrize(("status", "code", "named"), REFUSALS)
def test_a_bucket_that_refuses_writes(
    monkeypatch: pytest.MonkeyPatch, s3: OwnBucket, status: int, code: str, named: str
) -> None:
    """Reading and listing work, writing does not: an error at the start that says what to do."""

    def answer(request: BaseHTTPRequestHandler) -> Any:
        if request.command == "GET" and "list-type" in request.path:
            return 200, {}, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
        if request.command in ("GET", "HEAD"):
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        text = f"<Error><Code>{code}</Code><Message>text</Message></Error>"
        return (200, {}, DELETED) if request.command == "POST" else (status, {}, text.encode())

    with serve_answers(answer) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with pytest.raises((RemoteError, ConfigError), match=named):
            run_bucket_job("s3://bucket/s", SMALL)
    assert not any("manifest" in request for request in server.requests if "PUT" in request)


def test_a_server_that_ignores_conditions(s3: OwnBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out at the start, with an object that is deleted again."""
    files: dict[str, bytes] = {}

    def answer(request: Any) -> Any:
        name = request.path.partition("?")[0]
        if "list-type" in request.path:
            return 200, {}, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
        if request.command == "PUT":
            files[name] = request.body
            return 200, {"ETag": f'"{md5(request.body).hexdigest()}"'}, b""
        if request.command == "POST":
            assert "delete" in request.path
            files.clear()
            return 200, {}, DELETED
        return (200, {}, files[name]) if name in files else (404, {}, b"")

    with serve_answers(answer) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with pytest.raises(ConfigError, match="featstore push FOLDER"):
            run_bucket_job("s3://bucket/s", SMALL)
    assert not files


@pytest.mark.slow
def test_a_bad_network(
    s3: OwnBucket, faulty: MakeProxy, straight: dict[str, Any], tmp_path: Path
) -> None:
    """Connections that break, answers that are lost, errors, stalls, uploads that arrive damaged: the same store."""
    kinds = [*faults.BROKEN, "stall", *faults.DAMAGED_UPLOADS]
    proxy = faulty(s3.endpoint, Plan(seed=1, share=0.15, kinds=kinds, stall_s=6, most=1))
    s3.through(proxy)
    assert run_bucket_job(f"{s3.url}/s").rows == MANIFEST.num_rows
    assert len(proxy.injected) > 10
    assert fetched(s3, tmp_path / "copy") == straight


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("error 503", "SlowDown"),
        ("full", "bucket is full"),
        ("expired", "new credentials"),
        ("denied", "AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_bucket_that_fails_from_now_on(
    s3: OwnBucket,
    faulty: MakeProxy,
    straight: dict[str, Any],
    tmp_path: Path,
    kind: str,
    named: str,
) -> None:
    """The run ends with the error of the server; the same command resumes."""
    writes = [0]

    def later(method: str, target: str) -> bool:
        writes[0] += method == "PUT" and "/c/" in target
        return method == "PUT" and writes[0] > 10

    url = f"{s3.url}/s"
    s3.through(faulty(s3.endpoint, Plan(kinds=[kind], most=-1, only=later)))
    with pytest.raises(RemoteError, match=named):
        run_bucket_job(url)
    s3.patch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert 0 < run_bucket_job(url, lease_s=0.3).rows < MANIFEST.num_rows
    assert fetched(s3, tmp_path / "copy") == straight
