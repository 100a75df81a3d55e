"""The suite of all containers, for WebDataset, and what only its tars have."""

import io
import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore import FeatureStore
from featstore.containers import WebDatasetBackend, make_backend
from featstore.containers.address_range import SideBySide
from featstore.containers.tar_layout import LONGEST_KEY, key_of
from featstore.errors import ConfigError, FeatstoreError, ShardCorrupt, StoreError
from featstore.format.ledger import ObjectRecord, read_entry, write_entry
from featstore.format.manifest_records import WorkRecord
from featstore.maintenance.verify import verify
from featstore.sources import mirror_work
from featstore.sources.tars import TarSource
from tests.featstore.backend_tests import (
    NUM_ROWS,
    POINTS,
    BackendTests,
    Rows,
    every_kind,
    heavy_tailed,
    points,
    spec,
    values_of,
    vectors,
)

webdataset = pytest.importorskip("webdataset", reason="stock reader")

# webdataset 1.0.2 leaves the files that it reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


class TestWebDataset(BackendTests):
    """See ``BackendTests``."""

    container = "webdataset"


def write(path: Path, rows: Rows, **changes: Any) -> FeatureStore:
    """Write and open a store."""
    return FeatureStore.open(rows.write(path, "webdataset", **changes))


def tars(store: FeatureStore) -> list[Path]:
    """Its tars, in the order of the shards."""
    backend = make_backend(store.path, store.manifest)
    return [store.path / backend.object_names(shard)[0] for shard in store.shards]


def samples(paths: list[Path]) -> list[dict[str, Any]]:
    """All samples as stock webdataset reads and decodes them."""
    urls = [str(path) for path in paths]
    return list(webdataset.WebDataset(urls, shardshuffle=False).decode())


# ---------------------------------------------------------------- stock readers


def test_stock_webdataset_reads_every_kind(tmp_path: Path) -> None:
    """Each sample is complete, in row order, and its members hold what was written; the index is passed over."""
    rows = every_kind(invalid={5: "empty file"})
    store = write(tmp_path / "s", rows)
    found = samples(tars(store))
    assert len(found) == NUM_ROWS
    for row, sample in enumerate(found):
        assert sample["__key__"] == key_of(rows.ids[row])
        said = sample["json"]
        assert said["sample_id"] == rows.ids[row]
        assert bytes.fromhex(said["content_sha256"]) == rows.hashes[row].tobytes()
        assert said["valid"] == (row != 5)
        assert said["label"] == rows.label[row]
        if row == 5:
            assert not sample["float161.npy"].any()
            continue
        assert said["text"]["caption"] == rows.values["caption"][row].tolist()
        for name, record in rows.fields.items():
            kind, written = record.encoding.kind, rows.values[name][row]
            if record.dtype == "bfloat16":
                bits = sample[f"{name}.npy"]
                assert bits.dtype == np.uint16
                np.testing.assert_array_equal(bits.view(ml_dtypes.bfloat16), written)
            elif kind == "ragged":
                offsets = sample[f"{name}.offsets.npy"]
                for view, part in enumerate(written):
                    stored = sample[f"{name}.values.npy"][offsets[view] : offsets[view + 1]]
                    np.testing.assert_array_equal(stored, part, strict=True)
            elif kind == "topk":
                indices = sample[f"{name}.indices.npy"]
                values = np.take_along_axis(written, indices.astype(int), axis=-1)
                np.testing.assert_array_equal(sample[f"{name}.values.npy"], values)
            elif kind == "int8":
                codes = sample[f"{name}.codes.npy"]
                assert codes.dtype == np.int8
                if name != "int8-channel":
                    assert sample[f"{name}.scale.npy"].shape == codes.shape[:-1]
            elif record.dtype != "text":
                np.testing.assert_array_equal(sample[f"{name}.npy"], written, strict=True)


def test_stock_tar_reads_it(tmp_path: Path) -> None:
    """GNU tar lists every member without a word of complaint, and gives its bytes."""
    store = write(tmp_path / "s", every_kind())
    for path in tars(store):
        done = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        with tarfile.open(path) as archive:
            names = archive.getnames()
        assert done.stdout.splitlines() == names
        done = subprocess.run(["tar", "-xOf", path, names[-1]], capture_output=True, check=True)  # type: ignore[assignment]
        json.loads(done.stdout)


def test_bytes_are_those_of_tarfile(tmp_path: Path) -> None:
    """Python's tarfile, given the same members without owner and time, writes the same archive."""
    for path in tars(write(tmp_path / "s", every_kind())):
        ours = path.read_bytes()
        theirs = repacked(path, lambda name, data: [(name, data)])
        assert theirs[: len(ours)] == ours
        assert theirs[len(ours) :].strip(b"\0") == b""  # tarfile fills up to 10 kB


def test_members_are_what_numpy_writes(tmp_path: Path) -> None:
    """The npy members, headers included, are the bytes of ``numpy.save``."""
    for path in tars(write(tmp_path / "s", every_kind())):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name.startswith("__featstore__/") or member.name.endswith(".npy"):
                    again = io.BytesIO()
                    np.save(again, np.load(io.BytesIO(data)), allow_pickle=False)
                    assert again.getvalue() == data, member.name


@pytest.mark.slow
def test_hugging_face_datasets_reads_it(tmp_path: Path) -> None:
    """Its own loader of WebDataset tars, which shares no code with webdataset, groups the same samples."""
    datasets = pytest.importorskip("datasets", reason="another stock reader")
    rows = vectors()
    store = write(tmp_path / "s", rows)
    files = [str(path) for path in tars(store)]
    found = list(
        datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    )
    assert [sample["json"]["sample_id"] for sample in found] == rows.ids
    for sample, expected in zip(found, rows.values["cls"], strict=True):
        np.testing.assert_array_equal(np.array(sample["cls.npy"]), expected)


# ---------------------------------------------------------------- keys and names


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_keys(sample_id: str) -> None:
    """A key gives its id back, or is short; webdataset splits ``key.field.npy`` into these two."""
    key = key_of(sample_id)
    assert unquote(key) == sample_id or key.startswith("~")
    assert len(key) <= LONGEST_KEY
    assert key.isascii()
    found = webdataset.tariterators.base_plus_ext(f"{key}.mean.v-2.npy")
    assert found == (key, "mean.v-2.npy")
    assert not key.startswith(("__", "/"))
    assert ".." not in key


def test_keys_differ() -> None:
    """No two ids share a key, however odd, and whatever looks like a key of another."""
    odd = [
        "a",
        "a.b",
        "a%2Eb",
        "a/b",
        "a//b",
        "/a",
        "a/",
        "ä",
        "~",
        "__a__/b",
        "..",
        "A",
        "x" * 400,
    ]
    odd += [key_of(item) for item in odd]
    assert len({key_of(item) for item in odd}) == len(set(odd))


@pytest.mark.parametrize(
    "names", [("cls", "CLS"), ("a", "a.values"), ("P", "p.offsets"), ("P", "p.VALUES")]
)
def test_members_of_one_name_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    """webdataset lowers the case of names, and a field of two columns has two members."""
    fields = {name: spec("float16", (3,)) for name in names}
    if len(names[0]) == 1:
        fields[names[0]] = POINTS
    values = {name: values_of("float16", 4, 2, 3) for name in names}
    with pytest.raises(ConfigError, match="KEY"):
        Rows(fields, values).write(tmp_path / "s", "webdataset")
    assert list(tmp_path.iterdir()) == []


def long_names(rows: Rows, key: Callable[[int], str]) -> dict[str, Any]:
    """Make a store of one mirrored tar whose keys are odd."""
    rows.ids = [f"part/one/{key(row)}" for row in range(rows.num_rows)]
    sizes = (rows.num_rows,)
    work = WorkRecord(
        shard_rows=sizes[0], batch_size=2, shard_sizes=sizes, shard_names=("part/one",)
    )
    return {"work": work}


@pytest.mark.parametrize(
    "key",
    [
        lambda row: f"{'ä' * row}/图{row}",
        lambda row: f"{row}" + "x" * 600 * (row % 2),
        lambda row: "d/" * 90 + f"{row}",
        lambda row: f"v1.2/sub.dir/{row} with space\tand tab",
    ],
    ids=["unicode", "long", "deep", "dots"],
)
def test_keys_of_image_tars_stay_as_they_are(tmp_path: Path, key: Callable[[int], str]) -> None:
    """Long and non-ASCII names go into pax headers; both we and webdataset read them, samples stay of one size."""
    rows = every_kind(rows=5)
    store = write(tmp_path / "s", rows, **long_names(rows, key))
    rows.check(store, [4, 0, 0, 3])
    assert store.sample_ids == rows.ids
    [path] = tars(store)
    assert path == store.path / "shards/part/one.tar"
    assert [sample["__key__"] for sample in samples([path])] == [key(row) for row in range(5)]
    theirs = tarfile.open(path)  # noqa: SIM115
    assert theirs.getnames()[-1] == key(4) + ".json" or "values" in theirs.getnames()[-1]


def test_samples_of_fixed_fields_have_one_size(tmp_path: Path) -> None:
    """So that a row's place is a product, whatever the lengths of ids; texts and ragged fields end that."""
    rows = vectors()
    rows.ids = [f"{'n' * 7 * row}/{row}.png" for row in range(NUM_ROWS)]
    for columns, even in ((rows, True), (every_kind(), False)):
        store = write(tmp_path / str(even), columns)
        backend = make_backend(store.path, store.manifest)
        assert isinstance(backend, WebDatasetBackend)
        strides = [backend.open_shard(i, store.entry(i).objects).stride for i in store.shards]
        assert all(strides) == even


def test_ids_must_be_of_the_mirrored_tar(tmp_path: Path) -> None:
    """A sample that is not of its shard's tar, or whose key webdataset would split, is refused with both."""
    for wrong in ("part/two/0", "part/one/a.b", "part/one/"):
        rows = vectors(rows=2)
        changes = long_names(rows, str)
        rows.ids[1] = wrong
        with pytest.raises(StoreError, match="'part/one'"):
            rows.write(tmp_path / "s", "webdataset", **changes)


def test_work_is_cut_as_the_images_are(tmp_path: Path) -> None:
    """``mirror_work`` gives the names and sizes of a source's tars, also of a part of it; others are refused."""
    from featstore.sources import open_source
    from featstore.sources.config import SourceConfig

    for name, keys in (("b/x", "012"), ("b/y", "34"), ("a", "5")):
        image_tar(tmp_path / f"{name}.tar", {f"{key}.png": key.encode() for key in keys})
    source = TarSource(str(tmp_path / "**/*.tar"))
    work = mirror_work(source, batch_size=7)
    assert work.shard_names == ("a", "b/x", "b/y")
    assert work.shard_sizes == (1, 3, 2)
    assert (work.shard_rows, work.batch_size) == (3, 7)
    assert list(source.sample_ids)[1] == "b/x/0"
    config = SourceConfig(kind="tars", path=str(tmp_path / "**/*.tar"), include=["*/[034]"])
    part = mirror_work(open_source(config), batch_size=7)
    assert part.shard_names == ("b/x", "b/y")
    assert part.shard_sizes == (1, 2)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0.png").write_bytes(b"0")
    with pytest.raises(ConfigError):
        mirror_work(
            open_source(SourceConfig(kind="folder", path=str(tmp_path / "folder"))), batch_size=1
        )


def image_tar(path: Path, contents: dict[str, bytes]) -> Path:
    """A plain tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# ---------------------------------------------------------------- reading no more than asked


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """Ids and one row of a large shard compare a few blocks, not the tar."""
    rows = vectors(rows=40, width=200_000, shard_rows=40)
    store = write(tmp_path / "s", rows)
    backend = make_backend(store.path, store.manifest)
    assert isinstance(backend, WebDatasetBackend)
    objects = store.entry(0).objects
    tar = backend.open_shard(0, objects)
    backend.read_shard(0, "sample_id", objects)
    reader = backend.open_column("fields/cls")
    reader.prepare(0, objects, np.array([30]))
    assert 0 < tar.file.checked.sum() <= 7
    assert tar.file.record.num_blocks > 100


def test_rows_of_a_checked_block_are_ready(tmp_path: Path) -> None:
    """What shares a block with a row that was read needs no second look."""
    store = write(tmp_path / "s", vectors(rows=1000, shard_rows=1000))
    backend = make_backend(store.path, store.manifest)
    reader = backend.open_column("fields/cls")
    everything = np.arange(1000)
    assert len(reader.unprepared(everything)) == 1000
    reader.prepare(0, store.entry(0).objects, np.array([500]))
    left = reader.unprepared(everything)
    assert 500 not in left
    assert len(left) < 1000 - 50


# ---------------------------------------------------------------- other writers, honest and not


def repacked(
    path: Path,
    change: Callable[[str, bytes], list[tuple[str | tarfile.TarInfo, bytes]]],
    *,
    form: int = tarfile.USTAR_FORMAT,
    mtime: int = 0,
) -> bytes:
    """A tar written by tarfile with the members of another one, each changed, left out or doubled."""
    data = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=data, mode="w", format=form) as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            for name, content in change(member.name, file.read()):
                info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                if info.isreg():
                    info.size = len(content)
                info.mtime = mtime
                new.addfile(info, io.BytesIO(content))
    return data.getvalue()


def reindexed(data: bytes, rows: int) -> bytes:
    """Correct ``starts`` in a tar of one shard, as an honest writer would."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    head: dict[str, Any] = {}
    for member in members:
        key = webdataset.tariterators.base_plus_ext(member.name)[0]
        if not member.name.startswith("__featstore__/"):
            head.setdefault(key, member.offset)
    last = members[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    starts = np.array([*head.values(), end])
    assert len(starts) == rows + 1
    place = members[0].offset_data + 128
    return data[:place] + starts.tobytes() + data[place + starts.nbytes :]


def commit_bytes(store: FeatureStore, shard: int, data: bytes) -> None:
    """Put a tar in place and state its checksums in the ledger, as a writer of any kind would."""
    entry = read_entry(store.path, shard)
    [name] = entry.objects
    (store.path / name).write_bytes(data)
    block = 1000
    crc = "".join(
        f"{google_crc32c.value(data[i : i + block]):08x}" for i in range(0, len(data), block)
    )
    record = ObjectRecord(bytes=len(data), block_bytes=block, crc32c=crc)
    write_entry(store.path, entry.model_copy(update={"objects": {name: record}}))


@pytest.mark.parametrize(
    ("form", "longer"),
    [
        (tarfile.USTAR_FORMAT, False),
        (tarfile.GNU_FORMAT, False),
        (tarfile.GNU_FORMAT, True),
        (tarfile.PAX_FORMAT, True),
    ],
)
def test_a_tar_of_another_writer(tmp_path: Path, form: int, longer: bool) -> None:
    """Other times, header formats, members that we do not know, json without padding: the rows are the same."""
    rows = every_kind(rows=4)
    changes = long_names(rows, lambda row: "k" * (150 if longer else 3) + str(row))
    store = write(tmp_path / "s", rows, **changes)

    def change(name: str, data: bytes) -> list[tuple[str | tarfile.TarInfo, bytes]]:
        if name.endswith(".json"):
            return [(name, data.rstrip() + b" " * len(name)), (name[:-4] + "txt", b"more")]
        return [(name, data)]

    [path] = tars(store)
    data = reindexed(repacked(path, change, form=form, mtime=10**9), 4)
    commit_bytes(store, 0, data)
    again = FeatureStore.open(store.path)
    rows.check(again, [3, 0, 1, 1])
    assert again.sample_ids == rows.ids
    assert len(samples([path])) == 4


def test_even_and_uneven_tars_in_one_store(tmp_path: Path) -> None:
    """A tar whose samples differ in size may come after one whose place was a product already, and before another."""
    rows = vectors(rows=12)
    store = write(tmp_path / "s", rows)
    path = tars(store)[1]
    longer = iter([10, 2000, 700, 1])
    data = repacked(
        path,
        lambda name, old: [
            (name, old.ljust(len(old) + next(longer)) if name.endswith("json") else old)
        ],
    )
    commit_bytes(store, 1, reindexed(data, 4))
    again = FeatureStore.open(store.path)
    for wanted in ([1, 2], [0, 9], [7, 4, 1, 5, 6], list(range(12))):
        rows.check(again, wanted)


Forge = Callable[[str, bytes], list[tuple[str | tarfile.TarInfo, bytes]]]


def npy(array: Any, **header: Any) -> bytes:
    """An npy file, or one whose header says something else."""
    data = io.BytesIO()
    if header:
        np.lib.format.write_array_header_1_0(data, {"fortran_order": False, **header})
        data.write(array)
    else:
        np.save(data, array, allow_pickle=True)
    return data.getvalue()


def replacing(part: str, data: Callable[[bytes], bytes]) -> Forge:
    """Other contents for the members whose name holds a text."""
    return lambda name, old: [(name, data(old) if part in name else old)]


def link(name: str, old: bytes) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    """A symbolic link out of the store in place of a member."""
    if not name.endswith("0.cls.npy"):
        return [(name, old)]
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [(info, b"")]


FORGERIES: dict[str, Forge] = {
    "object dtype": replacing("cls.npy", lambda old: npy(np.array([{}, {}], dtype=object))),
    "huge shape": replacing("cls.npy", lambda old: npy(b"", descr="<f2", shape=(2**40, 2**20))),
    "other shape": replacing("cls.npy", lambda old: npy(np.zeros((2, 5), np.float16))),
    "other dtype": replacing("cls.npy", lambda old: npy(np.zeros((2, 6), np.float32))),
    "big-endian": replacing("cls.npy", lambda old: npy(np.zeros((2, 6), ">f2"))),
    "fortran order": replacing("cls.npy", lambda old: npy(np.zeros((6, 2), np.float16).T)),
    "no npy": replacing("cls.npy", lambda old: b"x" * len(old)),
    "empty": replacing("cls.npy", lambda old: b""),
    "short": replacing("cls.npy", lambda old: old[:-1]),
    "expression": replacing(
        "cls.npy", lambda old: old[:10] + b"__import__('os').abort()".ljust(118) + old[128:]
    ),
    "a link": link,
    "no member": lambda name, old: [] if "cls.npy" in name else [(name, old)],
    "doubled index": lambda name, old: [(name, old)] * (1 + name.endswith("__/starts")),
    "no index": lambda name, old: [] if "__featstore__" in name else [(name, old)],
    "no ids": lambda name, old: [] if "sample_id" in name else [(name, old)],
    "..": lambda name, old: [(f"../../{name}" if "cls.npy" in name else name, old)],
    "absolute": lambda name, old: [(f"/{name}" if "cls.npy" in name else name, old)],
    "starts of nothing": replacing("__/starts", lambda old: npy(np.zeros(5, np.int64))),
    "starts beyond": replacing("__/starts", lambda old: npy(np.full(5, 2**62))),
    "starts below": replacing("__/starts", lambda old: npy(np.full(5, -512))),
    "starts as floats": replacing("__/starts", lambda old: npy(np.zeros(5))),
    "text offsets": replacing("sample_id/offsets", lambda old: npy(np.array([0, 2**62, -1, 5, 6]))),
    "text bytes": replacing(
        "sample_id/values", lambda old: old[:128] + b"\xff" * (len(old) - 128)
    ),
    "other ids": replacing("sample_id/values", lambda old: old[:128] + old[128:].swapcase()),
    "valid as text": replacing("valid/values", lambda old: npy(np.array(["a", "b", "c", "d"]))),
    "huge index": replacing(
        "content_sha256", lambda old: npy(b"", descr="|u1", shape=(2**50, 32))
    ),
    "ragged beyond": replacing(
        "ranges/values", lambda old: npy(np.full((4, 2, 2), 2**62, np.int64))
    ),
    "ragged gaps": replacing(
        "ranges/values", lambda old: npy(np.load(io.BytesIO(old)) + 1)
    ),
    "ragged counts": replacing("points.values", lambda old: npy(np.zeros((10**6, 3), np.float16))),
    "ragged members": lambda name, old: [] if "points.values" in name else [(name, old)],
}  # fmt: skip


@pytest.fixture
def mirrored(tmp_path: Path) -> tuple[FeatureStore, Rows]:
    """A store of one mirrored tar of four samples, with a plain and a ragged field."""
    rows = Rows(
        {"cls": spec("float16", (6,)), "points": POINTS},
        {"cls": heavy_tailed(4, 2, 6).astype(np.float16), "points": points(4, 2)},
    )
    return write(tmp_path / "s", rows, **long_names(rows, lambda row: f"key{row}")), rows


def read_everything(path: Path) -> Iterator[Callable[[], Any]]:
    """Every way to read a store."""
    store = FeatureStore.open(path)
    for row in range(4):
        yield lambda row=row: store.gather("cls", [row])  # type: ignore[misc]
    yield lambda: store.gather_ragged("points", [0, 2, 3])
    yield lambda: store.sample_ids
    yield lambda: store.valid
    yield lambda: store.content_sha256
    backend = make_backend(path, store.manifest)
    yield lambda: backend.read_shard(0, "fields/cls", store.entry(0).objects)
    yield lambda: backend.read_shard(0, "fields/points/values", store.entry(0).objects)


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_tars(mirrored: tuple[FeatureStore, Rows], name: str) -> None:
    """A tar with the right checksums that says something else: refused as such, at some read, and nothing else."""
    store, _ = mirrored
    [path] = tars(store)
    forged = repacked(path, FORGERIES[name])
    if name in ("short", "empty", "object dtype", "no member", "..", "absolute", "a link"):
        forged = reindexed(forged, 4) if name not in ("..", "absolute") else forged
    commit_bytes(store, 0, forged)
    refused = 0
    for use in read_everything(store.path):
        try:
            use()
        except ShardCorrupt as error:
            refused += 1
            assert "shard 0 (rows 0-3)" in str(error) or "shard 0 (rows " in str(error)
    assert refused > 0


@pytest.mark.parametrize(
    "place", ["size", "sign", "letters", "base 256", "checksum", "kind", "prefix", "name"]
)
def test_forged_headers(mirrored: tuple[FeatureStore, Rows], place: str) -> None:
    """A header of any sample's member that lies about its size, kind or name is refused when that row is read."""
    store, rows = mirrored
    [path] = tars(store)
    sound = path.read_bytes()
    where = {
        "size": (124, b"77777777777\0"),
        "sign": (124, b"-0000000230\0"),
        "letters": (124, b"00000x00230\0"),
        "base 256": (124, b"\x80" + b"\xff" * 11),
        "checksum": (148, b"777777\0 "),
        "kind": (156, b"2"),
        "prefix": (345, b"elsewhere"),
        "name": (0, b"kex"),
    }
    at, data = where[place]
    for row in range(4):
        with tarfile.open(path) as archive:
            start = archive.getmember(f"key{row}.cls.npy").offset
        forged = bytearray(sound)
        forged[start + at : start + at + len(data)] = data
        header = forged[start : start + 512]
        if place != "checksum":
            header[148:156] = b" " * 8
            forged[start + 148 : start + 156] = b"%06o\0 " % sum(header)
        commit_bytes(store, 0, bytes(forged))
        reader = FeatureStore.open(store.path)
        if (
            row == 0 or place != "checksum"
        ):  # its value is not looked at again once it fits the ledger
            with pytest.raises(ShardCorrupt, match=r"\b0\b"):
                reader.gather("cls", [row])
        if row:
            other = [i for i in range(4) if i != row]
            only = Rows({"cls": rows.fields["cls"]}, {"cls": rows.values["cls"]})
            only.check(reader, other)
        commit_bytes(store, 0, sound)


@pytest.mark.slow
@settings(deadline=None)
@given(data=st.data())
def test_garbage_with_right_checksums(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Any bytes in any place are read as numbers or refused; no other error, no crash, no memory."""
    folder = tmp_path_factory.mktemp("garbage")
    rows = Rows(
        {"cls": spec("float16", (6,)), "points": POINTS},
        {"cls": heavy_tailed(4, 2, 6).astype(np.float16), "points": points(4, 2)},
    )
    store = write(folder / "s", rows, **long_names(rows, lambda row: f"key{row}"))
    [path] = tars(store)
    forged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(forged) - 1))
        what = data.draw(st.binary(min_size=1, max_size=12))
        forged[at : at + len(what)] = what
    if data.draw(st.booleans()):
        del forged[data.draw(st.integers(0, len(forged))) :]
    commit_bytes(store, 0, bytes(forged))
    for use in read_everything(store.path):
        try:
            use()
        except FeatstoreError:
            continue


def test_json_is_not_parsed_by_us(mirrored: tuple[FeatureStore, Rows]) -> None:
    """It is for others; a hostile depth of it does nothing."""
    store, rows = mirrored
    [path] = tars(store)
    data = repacked(path, replacing(".json", lambda old: b"[" * len(old)))
    commit_bytes(store, 0, data)
    rows.check(FeatureStore.open(store.path), [0, 1, 2, 3])


def test_threads_open_tars_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """verify looks at several shards at once: no tar is mapped over another one, however long a mapping takes."""
    rows = vectors(rows=64)
    path = rows.write(tmp_path / "s", "webdataset")
    attach = SideBySide.attach

    def slowly(*arguments: Any) -> None:
        time.sleep(0.002)
        attach(*arguments)

    monkeypatch.setattr(SideBySide, "attach", slowly)
    report = verify(path, workers=8)
    assert [damage for damage in report.damages if damage.shard is not None] == []


def test_names_from_the_manifest_stay_inside(tmp_path: Path) -> None:
    """A shard cannot be named so that its tar lies elsewhere."""
    for name in ("../x", "/x", "a/../../x", ".hidden", ""):
        with pytest.raises(StoreError):
            WorkRecord(shard_rows=1, batch_size=1, shard_sizes=(1,), shard_names=(name,))
