"""Data sets as the Hugging Face hub has them: Parquet files and folders of images, on a disk and behind URLs."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from featstore import FeatureStore
from featstore.errors import ConfigError, SourceError, StoreWriteError
from featstore.sources import NO_LABEL, Source, open_source, parquet, row_groups
from featstore.sources.config import SourceConfig, source_of
from featstore.sources.decode import decode_image
from featstore.sources.row_groups import RowGroupCache
from tests.featstore.formula import make_config, run
from tests.featstore.sources.test_remote_tars import views
from tests.images import picture
from tests.servers.faults import Plan
from tests.servers.fixtures import MakeProxy, OwnBucket
from tests.servers.hub import serve_hub
from tests.servers.web import Web

COUNT = 12


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, also for its loading processes."""
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files as the hub has them, written by the library, with row groups of three."""
    hf = pytest.importorskip("datasets", reason="the hf extra is not installed")
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"])})
    for part, start in (("train-00000-of-00001", 0), ("test-00000-of-00001", 8)):
        numbers = range(start, min(start + 8, COUNT))
        rows = {
            "image": [{"bytes": picture(number), "path": f"{number}.png"} for number in numbers],
            "label": [number % 2 for number in numbers],
        }
        (tmp_path / "set/data").mkdir(parents=True, exist_ok=True)
        table = hf.Dataset.from_dict(rows, features=features)
        table.to_parquet(str(tmp_path / f"set/data/{part}.parquet"), batch_size=3)
    return tmp_path / "set"


ORDER = [8, 9, 10, 11, *range(8)]
"""Numbers of the pictures, in the order of the files' names."""


@pytest.fixture
def bucket(folder: Path, s3: OwnBucket) -> OwnBucket:
    """The same files in a bucket."""
    for path in (folder / "data").iterdir():
        s3.put(f"set/data/{path.name}", path.read_bytes())
    return s3


def rows_of(path: object, **options: Any) -> Source:
    return open_source(SourceConfig(kind="hf", path=str(path), **options))


def contents(source: Source) -> list[bytes]:
    return [source.read(row) for row in range(len(source))]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_files_of_the_hub(folder: Path) -> None:
    """Ids name file and row; the images' own bytes, classes and their names; in other processes too."""
    assert pq.ParquetFile(folder / "data/train-00000-of-00001.parquet").num_row_groups == 3
    source = rows_of(folder)
    assert source.sample_ids[0] == "data/test-00000-of-00001/00000000"
    assert source.sample_ids[-1] == "data/train-00000-of-00001/00000007"
    assert contents(source) == [picture(number) for number in ORDER]
    assert source.class_names == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [number % 2 for number in ORDER]
    assert pickle.loads(pickle.dumps(source)).read(3) == picture(11)
    train = rows_of(folder, include=["data/train-*"])
    assert contents(train) == [picture(number) for number in range(8)]
    assert contents(rows_of(folder / "data/*.parquet")) == contents(source)


def test_a_bucket_gives_what_a_disk_gives(folder: Path, bucket: OwnBucket) -> None:
    """Ids, labels and bytes are equal, also where every request fails once."""
    local = rows_of(folder)
    for path in (
        f"{bucket.url}/set",
        f"{bucket.url}/set/data/{{test,train}}-00000-of-00001.parquet",
    ):
        remote = rows_of(path)
        assert contents(remote) == contents(local)
        assert remote.class_names == local.class_names
        np.testing.assert_array_equal(remote.labels, local.labels)  # type: ignore[arg-type]
    assert rows_of(f"{bucket.url}/set").sample_ids[0] == local.sample_ids[0]


def test_requests_that_fail_are_repeated(bucket: OwnBucket, faulty: MakeProxy) -> None:
    """Each request meets an error or a cut connection before it gets through."""
    proxy = faulty(bucket.endpoint, Plan(kinds=("error 500", "cut body"), most=1))
    bucket.through(proxy)
    assert contents(rows_of(f"{bucket.url}/set")) == [picture(number) for number in ORDER]


def test_a_web_server_and_the_hub_give_what_a_disk_gives(
    folder: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A web server by braces; a data set repository by its name, at the commit that was found first."""
    expected = contents(rows_of(folder))
    url = web.share(folder, "set")
    assert contents(rows_of(url + "/data/{test,train}-00000-of-00001.parquet")) == expected
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        files = {f"data/{path.name}": path.read_bytes() for path in (folder / "data").iterdir()}
        hub.commits["team/set"] = [{"README.md": b"", **files}]
        source = rows_of("hf://datasets/team/set")
        hub.commits["team/set"].append({"README.md": b""})
        assert contents(source) == expected


def test_a_file_that_is_replaced_is_refused(bucket: OwnBucket, tmp_path: Path) -> None:
    """The error names it; the next start lists it anew."""
    source = rows_of(f"{bucket.url}/set")
    assert source.read(0) == picture(8)
    new = write(tmp_path / "new.parquet", {"image": [picture(50)] * 8, "label": [0] * 8})
    bucket.put("set/data/train-00000-of-00001.parquet", new.read_bytes())
    with pytest.raises(SourceError, match=r"train-00000-of-00001\.parquet"):
        source.read(4)
    bucket.delete("set/data/test-00000-of-00001.parquet")
    with pytest.raises(SourceError, match=r"test-00000-of-00001\.parquet"):
        source.read(3)
    assert rows_of(f"{bucket.url}/set").read(0) == picture(50)


def test_phase_one_and_two_read_a_bucket(folder: Path, bucket: OwnBucket, tmp_path: Path) -> None:
    """A store and its views, cut in random order, are those of the files on disk, in loading processes too."""
    for path, where, workers in ((str(folder), "a", 0), (f"{bucket.url}/set", "b", 2)):
        source = SourceConfig(kind="hf", path=path)
        run(make_config(folder, tmp_path / where, source=source, workers=workers))
    here, there = (FeatureStore.open(tmp_path / name) for name in "ab")
    assert here.sample_ids == there.sample_ids
    np.testing.assert_array_equal(here.content_sha256, there.content_sha256)
    np.testing.assert_array_equal(
        here.gather("cls", range(COUNT)), there.gather("cls", range(COUNT))
    )
    expected = views(rows_of(folder), here, workers=0)
    remote = rows_of(f"{bucket.url}/set", cache_gb=1e-9)
    assert torch.equal(views(remote, here, workers=0), expected)
    assert torch.equal(views(remote, here, workers=2), expected)


def test_the_cache_has_a_limit(folder: Path, cache: Path) -> None:
    """With room for one group, every image is still right; with room for all, no group is read twice."""
    source = rows_of(folder, cache_gb=1e-9)
    order = np.random.default_rng(0).permutation(COUNT)
    for row in order:
        assert source.read(int(row)) == picture(ORDER[row])
        files = [path for path in (cache / "row_groups").iterdir() if path.name[:4] != "lock"]
        assert len(files) == 1
    source = rows_of(folder)
    expected = contents(source)
    for path in (folder / "data").iterdir():
        path.unlink()
    assert contents(source) == expected


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path) -> None:
    """Cut anywhere, or empty."""
    made = RowGroupCache(10**6)
    images = [b"one", b"", b"three"]
    assert made.image("a", 2, lambda: images) == b"three"
    (path,) = (
        path for path in (tmp_path / "cache/row_groups").iterdir() if path.name[:4] != "lock"
    )
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert made.image("a", 2, lambda: images) == b"three"
        assert path.read_bytes() == whole
    assert made.image("a", 1, lambda: pytest.fail("read twice")) == b""


def test_a_cache_that_cannot_be_written_ends_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error of an image, whose row would become invalid."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreWriteError, match="row_groups"):
        rows_of(folder).read(0)


def test_memory_is_bounded_by_a_row_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose groups are larger than what is read at a time is refused, with their size."""
    monkeypatch.setattr(parquet, "MOST_GROUP_BYTES", 100)
    with pytest.raises(SourceError, match=r"test-00000.*row group 0.*row_group_size"):
        rows_of(folder)


def test_columns_and_labels(tmp_path: Path) -> None:
    """File bytes and arrays are images; texts are classes by name over all files; null is none."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write(tmp_path / "a.parquet", {"image": [picture(1), None], "label": ["dog", "cat"]})
    write(
        tmp_path / "b.parquet",
        {"image": [picture(2)], "label": pa.array(["ant"]).dictionary_encode()},
    )
    write(tmp_path / "c.parquet", {"image": [picture(3), picture(4)]})
    arrays = pa.array([pixels.tolist()], pa.list_(pa.list_(pa.uint8())))
    write(tmp_path / "d.parquet", {"image": arrays, "label": ["dog"]})
    source = rows_of(tmp_path)
    assert source.class_names == ("ant", "cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [2, 1, 0, NO_LABEL, NO_LABEL, 2]
    with pytest.raises(OSError, match="a/00000001"):
        source.read(1)
    np.testing.assert_array_equal(np.asarray(decode_image(source.read(5)))[..., 0], pixels)
    assert rows_of(tmp_path / "c.parquet").labels is None


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"picture": [b""]}, r"'image'.*picture"),
        ({"image": ["a.png"]}, "string"),
        ({"image": [[0.5]]}, "double"),
        ({"image": [b""], "label": [0.5]}, "double"),
        ({"image": pa.array([], pa.binary())}, "no rows"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, columns: dict[str, Any], match: str) -> None:
    """The message names the column and what was found."""
    write(tmp_path / "a.parquet", columns)
    with pytest.raises(SourceError, match=match):
        rows_of(tmp_path)


def test_names_and_numbers_are_not_mixed(tmp_path: Path) -> None:
    """Files with names of classes and files with numbers alone cannot be one source."""
    write(tmp_path / "a.parquet", {"image": [b""], "label": ["dog"]})
    write(tmp_path / "b.parquet", {"image": [b""], "label": [1]})
    with pytest.raises(SourceError, match=r"names.*b"):
        rows_of(tmp_path)


def test_a_damaged_file_is_refused(folder: Path) -> None:
    """A file without its end, and one that is no Parquet."""
    path = folder / "data/test-00000-of-00001.parquet"
    whole = path.read_bytes()
    for data in (whole[:-10], b"no table", b""):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=path.name):
            rows_of(folder)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("hf://datasets/team/set", "hf"),
        ("hf://datasets/team/set/{0..9}.tar", "tars"),
        ("s3://bucket/data/*.parquet", "hf"),
        ("data/*.parquet", "hf"),
        ("s3://bucket/x", "tars"),
    ],
)
def test_kinds_by_path(path: str, kind: str) -> None:
    assert source_of(path)["kind"] == kind


def test_kinds_of_what_is_there(folder: Path) -> None:
    """A folder as the hub has it; one Parquet file is a table of texts, unless the kind says otherwise."""
    assert source_of(folder)["kind"] == "hf"
    assert source_of(folder / "data/test-00000-of-00001.parquet")["kind"] == "text"
    assert len(rows_of(folder / "data/test-00000-of-00001.parquet")) == 4
    with pytest.raises(ConfigError, match="cache_gb"):
        SourceConfig(kind="hf", path="x", cache_gb=0)


def test_a_folder_of_images_in_a_bucket(tmp_path: Path, s3: OwnBucket) -> None:
    """Ids, classes, notes and bytes as on a disk; an image that was deleted is an error of that image."""
    names = ("cat/1.png", "cat/2.png", "dog/3.png", "notes.txt", ".hidden/4.png", "5.png")
    for number, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture(number))
        s3.put(f"set/{name}", picture(number))
    local, remote = (
        open_source(SourceConfig(kind="folder", path=path))
        for path in (str(tmp_path / "set"), f"{s3.url}/set")
    )
    assert list(remote.sample_ids) == list(local.sample_ids)
    assert remote.class_names == local.class_names == ("cat", "dog")
    np.testing.assert_array_equal(remote.labels, local.labels)  # type: ignore[arg-type]
    assert contents(remote) == contents(local)
    assert len(remote.notes) == len(local.notes) == 1
    assert pickle.loads(pickle.dumps(remote)).read(1) == local.read(1)
    s3.delete("set/cat/1.png")
    with pytest.raises(FileNotFoundError):
        remote.read(remote.sample_ids.index("cat/1.png"))


def test_locks_are_few(tmp_path: Path) -> None:
    """Groups share lock files, so that the folder does not fill with them."""
    made = RowGroupCache(10**6)
    for number in range(200):
        made.image(str(number), 0, lambda: [b"x"])
    locks = list((tmp_path / "cache/row_groups").glob("lock*"))
    assert len(locks) <= row_groups.LOCKS
