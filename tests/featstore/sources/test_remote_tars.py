"""Image tars in a bucket or on a web server: the same samples as from a disk, and refusals where they change."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.config import DataConfig
from distill.data.join_samples import join_samples
from distill.data.pictures import ViewDataset, load_batches
from distill.data.rules import rule_of
from distill.data.schedule import Request
from featstore import FeatureStore
from featstore.errors import SourceError
from featstore.sources import Source, listed_files, open_source
from featstore.sources import tars as tars_module
from featstore.sources.config import SourceConfig, source_of
from featstore.sources.listing import Ids, listing_path, read_listing
from featstore.sources.source_files import RemoteFile, SourceFile
from tests.featstore.formula import make_config, run
from tests.images import picture
from tests.servers.faults import NONE, Plan
from tests.servers.fixtures import MakeProxy, OwnBucket
from tests.servers.web import Web


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings of one test are not seen by another."""
    monkeypatch.setattr("featstore.sources.listing.cache_folder", lambda: tmp_path / "cache")


def tar_of(numbers: range, *, size: int = 0) -> bytes:
    """A tar of small pictures with their classes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in numbers:
            for suffix, data in (
                ("png", picture(number) + bytes(size)),
                ("cls", f"{number % 2}".encode()),
            ):
                member = tarfile.TarInfo(f"{number:04d}ä.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tars."""
    (tmp_path / "tars").mkdir()
    for number in range(3):
        (tmp_path / f"tars/{number:03d}.tar").write_bytes(tar_of(range(5 * number, 5 * number + 5)))
    return tmp_path / "tars"


@pytest.fixture
def bucket(folder: Path, s3: OwnBucket) -> OwnBucket:
    """The same tars in a bucket."""
    for path in folder.iterdir():
        s3.put(f"tars/{path.name}", path.read_bytes())
    return s3


def tars(path: str) -> Source:
    return open_source(SourceConfig(kind="tars", path=path))


def contents(source: Source) -> list[bytes]:
    return [source.read(row) for row in range(len(source))]


@pytest.mark.parametrize("pattern", ["/{000..002}.tar", "/00?.tar", "", "/{000,001,002}.tar"])
def test_a_bucket_gives_what_a_disk_gives(folder: Path, bucket: OwnBucket, pattern: str) -> None:
    """Ids, order, labels and bytes; named by braces, wildcards or folder."""
    local, remote = tars(str(folder)), tars(f"{bucket.url}/tars{pattern}")
    assert list(remote.sample_ids) == list(local.sample_ids)
    assert remote.tars == local.tars
    np.testing.assert_array_equal(remote.labels, local.labels)  # type: ignore[arg-type]
    assert contents(remote) == contents(local)
    assert source_of(f"{bucket.url}/tars{pattern}")["kind"] == "tars"


def test_a_web_server_gives_what_a_disk_gives(folder: Path, web: Web) -> None:
    """With braces; without a listing, wildcards and folders are refused with the pattern that serves."""
    url = web.share(folder, "tars")
    assert contents(tars(url + "/{000..002}.tar")) == contents(tars(str(folder)))
    assert len(tars(url + "/001.tar")) == 5
    with pytest.raises(SourceError, match=r"003\.tar"):
        tars(url + "/{000..003}.tar")
    with pytest.raises(SourceError, match=r"\{000\.\.099\}"):
        tars(url + "/*.tar")


def test_a_store_from_a_bucket_equals_one_from_a_disk(
    folder: Path, bucket: OwnBucket, tmp_path: Path
) -> None:
    """Loading processes read the bucket; all columns are equal to the last bit."""
    for path, where, workers in ((str(folder), "a", 0), (f"{bucket.url}/tars", "b", 2)):
        source = SourceConfig(kind="tars", path=path)
        run(make_config(folder, tmp_path / where, source=source, workers=workers))
    here, there = (FeatureStore.open(tmp_path / name) for name in "ab")
    assert here.sample_ids == there.sample_ids
    np.testing.assert_array_equal(here.content_sha256, there.content_sha256)
    np.testing.assert_array_equal(here.gather("cls", range(15)), there.gather("cls", range(15)))


def test_phase_two_reads_a_bucket(folder: Path, bucket: OwnBucket, tmp_path: Path) -> None:
    """Views cut from tars in a bucket, in random order, are those of the tars on disk, in loading processes too."""
    source = SourceConfig(kind="tars", path=str(folder))
    run(make_config(folder, tmp_path / "s", source=source))
    store = FeatureStore.open(tmp_path / "s")
    remote = tars(f"{bucket.url}/tars/{{000..002}}.tar")
    expected = views(tars(str(folder)), store, workers=0)
    assert torch.equal(views(remote, store, workers=0), expected)
    assert torch.equal(views(remote, store, workers=2), expected)


def views(source: Source, store: FeatureStore, *, workers: int) -> torch.Tensor:
    """Views of all images, in an order of their own."""
    everything = DataConfig(labelled=[], unlabelled=["*"], test=[])
    samples = join_samples(source, store, everything)
    order = np.random.default_rng(0).permutation(len(samples.ids)).tolist()
    dataset = ViewDataset(samples, rule_of(store, "cls"), size=(8, 8))
    batches = [[Request(i, 1, 0, False) for i in order[at : at + 4]] for at in range(0, 15, 4)]
    return torch.cat([one.pixels for one in load_batches(dataset, batches, workers=workers)])


def test_a_tar_that_is_replaced_is_refused(bucket: OwnBucket) -> None:
    """Of the same size too: the error names it; the next start lists it anew."""
    source = tars(f"{bucket.url}/tars")
    assert contents(source)[0] == picture(0)
    del source
    source = tars(f"{bucket.url}/tars")
    bucket.put("tars/001.tar", tar_of(range(10, 15)))
    with pytest.raises(SourceError, match=r"001\.tar"):
        source.read(7)
    bucket.delete("tars/002.tar")
    with pytest.raises(SourceError, match=r"002\.tar"):
        source.read(12)
    bucket.put("tars/002.tar", tar_of(range(20, 25)))
    assert contents(tars(f"{bucket.url}/tars"))[5] == picture(10)


def test_a_tar_that_is_listed_but_gone(bucket: OwnBucket, folder: Path) -> None:
    """Named by braces and deleted after the first start: an error that names it, in the bucket and on a disk."""
    places = (f"{bucket.url}/tars", str(folder))
    for place in places:
        assert len(tars(f"{place}/{{000..002}}.tar")) == 15
    bucket.delete("tars/001.tar")
    (folder / "001.tar").unlink()
    for place in places:
        with pytest.raises(SourceError, match=r"001\.tar"):
            tars(f"{place}/{{000..002}}.tar")
    with pytest.raises(SourceError, match=r"same command"):
        tars(f"{bucket.url}/tars/{{000..002}}.tar")


def test_requests_that_fail_are_repeated(bucket: OwnBucket, faulty: MakeProxy) -> None:
    """Each request meets an error or a cut connection before it gets through."""
    proxy = faulty(bucket.endpoint, Plan(kinds=("error 500", "cut body"), most=1))
    bucket.through(proxy)
    assert contents(tars(f"{bucket.url}/tars"))[14] == picture(14)


@pytest.mark.parametrize(
    ("kind", "named"), [("expired", "credentials"), ("denied", "AWS_ACCESS_KEY_ID")]
)
def test_rights_that_end_while_images_are_read(
    bucket: OwnBucket, faulty: MakeProxy, kind: str, named: str
) -> None:
    """An error of the source that ends the run, not an image that cannot be read; afterwards it is read again."""
    proxy = faulty(bucket.endpoint, NONE)
    bucket.through(proxy)
    source = tars(f"{bucket.url}/tars")
    assert source.read(0) == picture(0)
    proxy.plan = Plan(kinds=[kind], most=-1)
    with pytest.raises(SourceError, match=named):
        source.read(12)
    proxy.plan = NONE
    assert source.read(12) == picture(12)


def test_memory_is_bounded_by_the_window(
    bucket: OwnBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tar of several windows is listed and read in pieces of one window."""
    monkeypatch.setattr(RemoteFile, "buffer_bytes", 20_000)
    bucket.put("large.tar", tar_of(range(20), size=9_000))
    parts: list[int] = []
    whole = RemoteFile.pread

    def pread(self: RemoteFile, size: int, offset: int) -> bytes:
        data = whole(self, size, offset)
        parts.append(len(self._window))
        return data

    monkeypatch.setattr(RemoteFile, "pread", pread)
    source = tars(f"{bucket.url}/large.tar")
    assert [data[: len(picture(0))] for data in contents(source)] == [picture(n) for n in range(20)]
    assert max(parts) <= 20_000


def test_a_listing_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start reads no tar; one that changed is listed again, and only that one."""
    first = tars(str(folder))
    scanned: list[str] = []
    scan = tars_module._scan

    def counted(tar: SourceFile, **options: Any) -> object:
        scanned.append(tar.name)
        return scan(tar, **options)

    monkeypatch.setattr(tars_module, "_scan", counted)
    again = tars(str(folder))
    assert scanned == []
    assert list(again.sample_ids) == list(first.sample_ids)
    assert contents(again) == contents(first)
    np.testing.assert_array_equal(again.labels, first.labels)  # type: ignore[arg-type]
    (folder / "001.tar").write_bytes(tar_of(range(50, 53)))
    changed = tars(str(folder))
    assert [Path(name).name for name in scanned] == ["001.tar"]
    assert changed.tars == [("000", 5), ("001", 3), ("002", 5)]
    assert contents(changed)[5] == picture(50)


def test_two_that_list_at_the_same_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second keeps the file of the first, which others map; one of changed tars takes its place."""
    first = tars(str(folder))
    (path,) = (tmp_path / "cache/listings").iterdir()
    kept = path.stat().st_ino
    monkeypatch.setattr(listed_files, "read_listing", lambda path: None)
    again = tars(str(folder))
    assert (path.stat().st_ino, contents(again)) == (kept, contents(first))
    (folder / "001.tar").write_bytes(tar_of(range(50, 53)))
    assert contents(tars(str(folder)))[5] == picture(50)
    assert path.stat().st_ino != kept
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_a_damaged_listing_is_ignored(folder: Path, tmp_path: Path, damage: str) -> None:
    """The tars are listed again, and the file is mended."""
    expected = contents(tars(str(folder)))
    (path,) = (tmp_path / "cache/listings").iterdir()
    whole = path.read_bytes()
    broken = {
        "cut": whole[: len(whole) // 2],
        "flip": whole[:400] + bytes([whole[400] ^ 1]) + whole[401:],
        "text": b"no archive",
        "empty": b"",
    }
    path.write_bytes(broken[damage])
    assert contents(tars(str(folder))) == expected
    kept = read_listing(path)
    assert kept is not None
    assert len(kept.files) == 3
    assert listing_path("a").parent == path.parent


def test_any_flipped_bit_of_a_listing_is_found(folder: Path, tmp_path: Path) -> None:
    """Also one in the counts at its end."""
    tars(str(folder))
    (path,) = (tmp_path / "cache/listings").iterdir()
    whole = path.read_bytes()
    for at in (0, 100, *range(len(whole) - 48, len(whole))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read_listing(path) is None, at - len(whole)
    path.write_bytes(whole)
    assert read_listing(path) is not None


def test_ids_are_a_sequence_of_texts() -> None:
    """Indices, negative ones, slices and iteration, across steps of decoding; names that are no UTF-8 too."""
    texts = ["a", "", "ä/b", "\udcff", "x" * 300] * 40_000
    ids = Ids.of(texts)
    assert list(ids) == texts
    assert (ids[3], ids[-1], ids[2:4], ids[::50_000]) == (
        texts[3], texts[-1], texts[2:4], texts[::50_000],
    )  # fmt: skip
    assert list(Ids.joined([ids, Ids.of(["z"]), ids])) == [*texts, "z", *texts]
    with pytest.raises(IndexError):
        ids[len(ids)]
