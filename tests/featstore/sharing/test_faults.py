"""Stores that travel over a bad network: nothing is lost, and what arrives damaged is caught and named.

The S3-compatible server and nginx are real; between them and us stands a proxy that breaks connections, answers with
errors, stalls, and changes bytes. ``python -m tests.servers.soak`` does the same for longer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.errors import FeatstoreError, RemoteError, ShardCorrupt
from featstore.places.base import Retry
from featstore.reading.cached.cache import CacheConfig
from featstore.sharing.pull import pull
from featstore.sharing.push import push
from tests.featstore.stores import field, make_columns, make_manifest, write_store
from tests.featstore.travel import KINDS, QUICK, check_named, check_same, files_of
from tests.servers import faults
from tests.servers.cutter import serve_cutter
from tests.servers.faults import Plan
from tests.servers.fixtures import MakeProxy, OwnBucket
from tests.servers.sftp import Sftp
from tests.servers.web import Web

MANIFEST = make_manifest(num_rows=33, shard_rows=2, views=1, fields={"cls": field(3)})
"""17 shards, the last one short, of 5 objects each."""

REASONS = {3: "not an image", 30: "not an image"}

VALID = np.setdiff1d(np.arange(MANIFEST.num_rows), list(REASONS))


@pytest.fixture(scope="module")
def columns() -> dict[str, Any]:
    """Values of the store."""
    return make_columns(MANIFEST, invalid=list(REASONS))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, columns: dict[str, Any]) -> Path:
    """A small store of many objects."""
    return write_store(
        tmp_path_factory.mktemp("here") / "store", MANIFEST, columns, reasons=REASONS
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The like with 4 shards."""
    manifest = make_manifest(num_rows=8, shard_rows=2, views=1)
    return write_store(tmp_path_factory.mktemp("small") / "store", manifest, make_columns(manifest))


def read_all(url: str, cache: CacheConfig) -> npt.NDArray[np.float16]:
    """A field of a store, read in place."""
    return FeatureStore.open(url, cache=cache).gather("cls", VALID)


def is_part(method: str, target: str) -> bool:
    """Requests for objects of shards."""
    return "/c/" in target


@pytest.mark.slow
def test_push_and_pull_lose_nothing(
    store: Path, s3: OwnBucket, faulty: MakeProxy, tmp_path: Path
) -> None:
    """More than 120 faults on the way to an S3 server and back: every byte arrives, every damaged object is named."""
    url = f"{s3.url}/store"
    there = faulty(s3.endpoint, Plan(seed=1, share=0.8, kinds=KINDS, most=1))
    s3.through(there)
    assert check_named(there.injected, push(store, url, retry=QUICK)) > 15
    assert s3.files("store") == files_of(store)
    back = faulty(s3.endpoint, Plan(seed=2, share=0.8, kinds=KINDS, most=2))
    s3.through(back)
    assert check_named(back.injected, pull(url, tmp_path / "copy", retry=QUICK)) > 15
    check_same(tmp_path / "copy", store)
    assert len(there.injected) + len(back.injected) > 120
    assert {fault.kind for fault in there.injected + back.injected} == set(faults.KINDS)


@pytest.mark.slow
def test_pull_from_a_web_server_loses_nothing(
    store: Path, web: Web, faulty: MakeProxy, tmp_path: Path
) -> None:
    """The same over plain http, where nobody lists files."""
    proxy = faulty(web.share(store), Plan(seed=3, share=0.7, kinds=KINDS, most=2))
    report = pull(proxy.url, tmp_path / "copy", retry=QUICK)
    assert check_named(proxy.injected, report) > 15
    check_same(tmp_path / "copy", store)
    assert len(proxy.injected) > 50


@pytest.mark.slow
def test_reading_in_place_gives_the_rows(
    store: Path, columns: dict[str, Any], web: Web, faulty: MakeProxy, tmp_path: Path
) -> None:
    """Every row that is read from the URL is the one that was written."""
    proxy = faulty(web.share(store), Plan(seed=4, share=0.7, kinds=KINDS, most=2))
    found = FeatureStore.open(proxy.url, cache=CacheConfig(folder=tmp_path / "cache", retry=QUICK))
    order = np.random.default_rng(0).permutation(VALID)
    for rows in np.array_split(order, 5):
        np.testing.assert_array_equal(found.gather("cls", rows), columns["fields/cls"][rows])
        assert found.sample_ids == [str(name) for name in columns["sample_id"]]
    assert len(proxy.injected) > 25


def test_answers_to_other_requests(
    small: Path, web: Web, faulty: MakeProxy, tmp_path: Path
) -> None:
    """A sound file that is not the one that was asked for is neither taken for it nor for a sign of another store."""
    proxy = faulty(web.share(small), faults.NONE)
    found = FeatureStore.open(proxy.url, cache=CacheConfig(folder=tmp_path / "cache", retry=QUICK))
    proxy.plan = Plan(kinds=["exchanged"], most=1)
    rows = np.arange(found.num_rows)
    expected = FeatureStore.open(small).gather("cls", rows)
    np.testing.assert_array_equal(found.gather("cls", rows), expected)
    assert any(fault.name.endswith("/manifest.json") for fault in proxy.injected)


@pytest.mark.slow
def test_cut_connections_of_sftp_lose_nothing(sftp: Sftp, tmp_path: Path) -> None:
    """Each connection, which all jobs share, lives for some thousand bytes, until six were cut."""
    manifest = make_manifest(num_rows=24, shard_rows=8, views=1)
    manifest = manifest.model_copy(update={"container": "webdataset"})
    store = write_store(tmp_path / "tars", manifest, make_columns(manifest))
    with serve_cutter(sftp.port, seed=5, most=6, after=(8000, 40000)) as cutter:
        url = sftp.through(cutter.port)
        push(store, f"{url}/store", retry=QUICK)
        assert files_of(sftp.folder / "store") == files_of(store)
        pull(f"{url}/store", tmp_path / "copy", retry=QUICK)
        assert cutter.cuts == 6
    check_same(tmp_path / "copy", store)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("/fields/cls/c/3/", lambda method, target: "/fields/cls/c/3/" in target),
        ("/ledger/00000007.json", lambda method, target: target.endswith("/ledger/00000007.json")),
        ("/manifest.json", lambda method, target: target.endswith("/manifest.json")),
    ],
    ids=["object", "entry", "manifest"],
)
def test_a_server_that_damages_every_answer(
    name: str,
    only: Callable[[str, str], bool],
    store: Path,
    web: Web,
    faulty: MakeProxy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command ends with one error that names what is damaged, nothing that looks like a store is there, and once
    the server is well the same command goes on.
    """
    proxy = faulty(web.share(store), Plan(kinds=["flip"], most=-1, only=only))
    target = tmp_path / "copy"
    assert main(["pull", proxy.url, str(target)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert name in lines[0]
    assert not target.exists()
    cache = CacheConfig(folder=tmp_path / "cache", retry=QUICK)
    with pytest.raises(FeatstoreError, match=name):
        read_all(proxy.url, cache)
    proxy.plan = faults.NONE
    assert main(["pull", proxy.url, str(target)]) == 0
    check_same(target, store)


@pytest.mark.slow
def test_uploads_that_are_always_damaged(small: Path, s3: OwnBucket, faulty: MakeProxy) -> None:
    """The push ends with an error that names the object, readers find no store, and a later push goes on."""
    url = f"{s3.url}/store"
    proxy = faulty(
        s3.endpoint,
        Plan(kinds=["flip upload"], most=-1, only=lambda _, target: "/label/c/3" in target),
    )
    s3.through(proxy)
    with pytest.raises(ShardCorrupt, match="label/c/3"):
        push(small, url, retry=QUICK)
    assert "store/manifest.json" not in s3.names()
    proxy.plan = faults.NONE
    report = push(small, url, retry=QUICK)
    assert report.skipped_files > 10
    assert s3.files("store") == files_of(small)


@pytest.mark.slow
def test_a_store_that_is_there_is_not_taken_for_another(
    small: Path, s3: OwnBucket, faulty: MakeProxy, tmp_path: Path
) -> None:
    """A second push and a second pull, where the first answer to each request is damaged, change nothing."""
    url = f"{s3.url}/store"
    push(small, url, retry=QUICK)
    pull(url, tmp_path / "copy", retry=QUICK)
    s3.through(faulty(s3.endpoint, Plan(kinds=["flip"], most=1)))
    push(small, url, retry=QUICK)
    pull(url, tmp_path / "copy", retry=QUICK)
    assert s3.files("store") == files_of(small)
    check_same(tmp_path / "copy", small)


@pytest.mark.parametrize("kind", sorted({*faults.BROKEN} - faults.NEEDS_UPLOAD))
def test_a_server_that_never_answers_well(
    kind: str, store: Path, web: Web, faulty: MakeProxy, tmp_path: Path
) -> None:
    """One error that names the object and how often it was asked for; nothing that looks like a store is there."""
    proxy = faulty(web.share(store), Plan(kinds=[kind], most=-1, only=is_part))
    retry = Retry(attempts=3, first_s=0.002, most_s=0.02, timeout_s=0.5)
    with pytest.raises(RemoteError, match=r"/c/\d.*\b3\b") as caught:
        pull(proxy.url, tmp_path / "copy", retry=retry)
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "copy").exists()
