"""Stores that are pushed and pulled: only what is missing travels, nothing half is ever seen, no byte is believed."""

import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.derive.subset import subset
from featstore.errors import (
    ConfigError,
    FeatstoreError,
    ManifestMismatch,
    RemoteError,
    ShardCorrupt,
    StoreBusy,
    StoreError,
    StoreIncomplete,
    StoreNotFound,
    StoreWriteError,
)
from featstore.format.ledger import entry_bytes, mark_complete, read_entry
from featstore.maintenance.verify import verify
from featstore.places.base import Retry
from featstore.places.local import LocalPlace
from featstore.reading.cached.published_store import EXTRAS, local_contents
from featstore.sharing import partial_folder as landing
from featstore.sharing import pull as pull_module
from featstore.sharing import receiver
from featstore.sharing.part import Part
from featstore.sharing.partial_folder import unfinished
from featstore.sharing.progress import TransferReport
from featstore.sharing.pull import pull
from featstore.sharing.push import push
from tests.featstore.golden import FOLDER as GOLDEN
from tests.featstore.processes import die_at, fork, wait
from tests.featstore.stores import field, make_columns, make_manifest, write_store
from tests.servers.fixtures import OwnBucket
from tests.servers.hub import serve_hub
from tests.servers.sftp import Sftp
from tests.servers.web import Web

QUICK = Retry(attempts=2, first_s=0.001, most_s=0.01, timeout_s=10)

MANIFEST = make_manifest(num_rows=20, shard_rows=8)  # 3 shards of 6 objects

OBJECT = "fields/cls/c/1/0/0"

KILLED = -signal.SIGKILL
"""Status of a child that died at a call, which only one thread must count: it has ``jobs=1``."""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of files are synced, which need not take time."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that no test changes."""
    path = tmp_path_factory.mktemp("original") / "store"
    columns = make_columns(MANIFEST, invalid=[3])
    return write_store(path, MANIFEST, columns, reasons={3: "not an image"})


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    """A store to change."""
    shutil.copytree(original, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one shard, for servers that take their time."""
    manifest = make_manifest(num_rows=5, fields={"cls": field(6)})
    return write_store(tmp_path_factory.mktemp("small") / "store", manifest, make_columns(manifest))


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another store, of fewer shards; the first of them has other objects under the same names."""
    manifest = make_manifest(num_rows=10, shard_rows=8)
    columns = make_columns(manifest, seed=1)
    return write_store(tmp_path_factory.mktemp("another") / "store", manifest, columns)


def files_of(folder: Path) -> dict[str, bytes]:
    """What belongs to a store."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".publish")
    }


def beside(folder: Path) -> list[str]:
    """Unfinished things beside a store."""
    return sorted(path.name for path in folder.parent.iterdir() if path.name.startswith("."))


def flip(path: Path, at: int = 3) -> None:
    """Change a bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["store_v1_zarr", "store_v1_webdataset"])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """Every file of every kind of field, artefact and container comes back byte by byte, and nothing travels twice."""
    store, there, back = GOLDEN / name, tmp_path / "there", tmp_path / "back"
    sent = push(store, str(there), retry=QUICK)
    assert files_of(there) == files_of(store)
    arrived = pull(str(there), back, retry=QUICK)
    assert files_of(back) == files_of(store)
    assert verify(back).sound
    assert beside(back) == []
    fingerprint = FeatureStore.open(store).fingerprint
    assert [(report.fingerprint, report.rows) for report in (sent, arrived)] == [
        (fingerprint, 13)
    ] * 2
    for report in (push(store, str(there), retry=QUICK), pull(str(there), back, retry=QUICK)):
        assert (report.files, report.bytes, report.damaged, report.notes) == (0, 0, (), ())
        assert report.skipped_bytes >= sum(
            record.bytes for entry in (0, 1) for record in read_entry(store, entry).objects.values()
        )
    assert files_of(there) == files_of(store)


@pytest.mark.slow
def test_over_a_bucket(small: Path, s3: OwnBucket, tmp_path: Path) -> None:
    """The same over S3."""
    push(small, f"{s3.url}/a/store", retry=QUICK)
    assert s3.files("a/store") == files_of(small)
    pull(f"{s3.url}/a/store", tmp_path / "back", retry=QUICK)
    assert files_of(tmp_path / "back") == files_of(small)
    assert push(small, f"{s3.url}/a/store", retry=QUICK).files == 0


@pytest.mark.slow
def test_over_sftp_and_the_web(small: Path, sftp: Sftp, web: Web, tmp_path: Path) -> None:
    """Pushed over SFTP into a folder that a web server shows, pulled from there, where nobody lists files."""
    push(small, f"{sftp.url}/store", retry=QUICK)
    assert files_of(sftp.folder / "store") == files_of(small)
    pull(web.share(sftp.folder / "store"), tmp_path / "back", retry=QUICK)
    assert files_of(tmp_path / "back") == files_of(small)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_over_a_hub(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of the hub finds all of the store or nothing: it comes in one commit."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "secret")
        push(small, "hf://datasets/team/store", retry=QUICK)
        assert len(hub.commits["team/store"]) == 2
        found = hub.files("team/store")
        assert found.pop(".gitattributes") == b""
        assert found == files_of(small)
        pull("hf://datasets/team/store@main", tmp_path / "back", retry=QUICK)
        assert files_of(tmp_path / "back") == files_of(small)
        assert push(small, "hf://datasets/team/store", retry=QUICK).files == 0
        assert len(hub.commits["team/store"]) == 2


@pytest.mark.parametrize("call", [1, 9, 20, 30])
def test_a_killed_push_goes_on(call: int, original: Path, tmp_path: Path) -> None:
    """kill -9 at any file: no reader finds a store, and what was finished does not travel again."""
    there = tmp_path / "there"
    there.mkdir()

    def work() -> None:
        die_at(LocalPlace, "_write", call)
        push(original, str(there), jobs=1, retry=QUICK)

    assert wait(fork(work)) == KILLED
    assert not (there / "manifest.json").exists()
    with pytest.raises(StoreIncomplete):
        pull(str(there), tmp_path / "back", retry=QUICK)
    before = len([name for name in files_of(there) if "/c/" in name])
    (there / ".partial-half").write_bytes(b"half of a file")
    report = push(original, str(there), retry=QUICK)
    assert report.skipped_files >= before
    assert files_of(there) == files_of(original)
    pull(str(there), tmp_path / "back", retry=QUICK)
    assert files_of(tmp_path / "back") == files_of(original)


@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("_pieces", 2),
        ("_pieces", 20),
        ("_pieces", 28),
        ("sync_folders_below", 0),
        ("write_bytes", 11),
        ("write_bytes", 12),
        ("publish_folder", 0),
    ],
)
def test_a_killed_pull_goes_on(step: str, call: int, original: Path, tmp_path: Path) -> None:
    """kill -9 at any file, and at the steps that make a folder a store: the same command finds what has arrived."""
    back = tmp_path / "back"

    def work() -> None:
        where = {"_pieces": LocalPlace, "write_bytes": receiver}.get(step, pull_module)
        die_at(where, step, call)
        pull(str(original), back, jobs=1, retry=QUICK)

    assert wait(fork(work)) == KILLED
    assert not back.exists()
    assert beside(back) == [".partial-back.pull"]
    before = len([name for name in files_of(tmp_path / ".partial-back.pull") if "/c/" in name])
    assert before or call == 2
    report = pull(str(original), back, retry=QUICK)
    assert report.skipped_files >= before
    assert files_of(back) == files_of(original)
    assert beside(back) == []


def test_an_error_says_how_far_it_went(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network goes: one error with the file and what is done; the same command goes on."""
    read = LocalPlace._pieces

    def gone(place: LocalPlace, name: str, start: int) -> Any:
        if name.startswith(("fields/grid2/c/2", "valid/c/2")):
            raise PermissionError(13, "gone")
        return read(place, name, start)

    with monkeypatch.context() as patch:
        patch.setattr(LocalPlace, "_pieces", gone)
        with pytest.raises(RemoteError, match=r"c/2.*So far \d+ files .* featstore pull"):
            pull(str(original), tmp_path / "back", jobs=1, retry=QUICK)
    report = pull(str(original), tmp_path / "back", retry=QUICK)
    assert report.skipped_files > 5
    assert files_of(tmp_path / "back") == files_of(original)


def test_an_interrupt_ends_a_transfer(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while threads are at work: they end, and the command can go on."""
    write = LocalPlace._write

    def interrupt(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(*arguments)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(LocalPlace, "_write", interrupt)
            with pytest.raises(KeyboardInterrupt):
                push(original, str(tmp_path / "there"), retry=QUICK)
    finally:
        signal.signal(signal.SIGINT, previous)
    push(original, str(tmp_path / "there"), retry=QUICK)
    assert files_of(tmp_path / "there") == files_of(original)


def test_a_damaged_copy_is_mended(original: Path, store: Path) -> None:
    """On a copy that is there, pull fetches what is damaged or missing, and nothing else."""
    flip(store / OBJECT)
    (store / "label/c/2").unlink()
    (store / "valid/c/0").write_bytes(b"")
    report = pull(str(original), store, retry=QUICK)
    assert (report.files, report.damaged) == (3, ())
    assert files_of(store) == files_of(original)
    flip(store / "ledger/00000001.json", at=40)
    (store / "ledger/00000002.json").unlink()
    flip(store / "sample_id/zarr.json", at=40)
    pull(str(original), store, retry=QUICK)
    assert files_of(store) == files_of(original)


def test_damage_at_the_place_is_named(store: Path, tmp_path: Path) -> None:
    """A pull ends with the object, the shard, the rows, what was found and what was expected; no store is left."""
    flip(store / OBJECT)
    name = rf'{OBJECT}: shard 1 \(rows 8-15\), column "fields/cls": crc32c \w+, expected \w+\. It was so 4 times'
    with pytest.raises(ShardCorrupt, match=name):
        pull(str(store), tmp_path / "back", retry=QUICK)
    assert not (tmp_path / "back").exists()
    flip(store / OBJECT)
    with (store / OBJECT).open("ab") as file:
        file.write(bytes(10))
    with pytest.raises(ShardCorrupt, match=rf"{OBJECT}.*\b1\b"):
        pull(str(store), tmp_path / "back", retry=QUICK)
    (store / OBJECT).unlink()
    with pytest.raises(ShardCorrupt, match=rf"{OBJECT}.*\b1\b"):
        pull(str(store), tmp_path / "back", retry=QUICK)


def damaging(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[str, int], bool]) -> dict[str, int]:
    """Let what is written to local places arrive damaged where ``wrong`` (name, how often before) says so."""
    write = LocalPlace._write
    counts: dict[str, int] = {}

    def damaged(place: LocalPlace, name: str, data: bytes | Path, progress: Any) -> None:
        write(place, name, data, progress)
        if wrong(name, counts.setdefault(name, 0)):
            flip(place.folder / name)
        counts[name] += 1

    monkeypatch.setattr(LocalPlace, "_write", damaged)
    return counts


def test_what_arrives_damaged_is_sent_again(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file damaged twice on the way is in the report twice, and right in the end."""
    counts = damaging(monkeypatch, lambda name, before: before < 2)
    report = push(original, str(tmp_path / "there"), retry=QUICK)
    assert files_of(tmp_path / "there") == files_of(original)
    assert len(report.damaged) == 2 * len(counts) == 2 * (len(files_of(original)) + 1)
    for name in files_of(original):
        assert sum(f"there/{name}: " in text for text in report.damaged) == 2


@pytest.mark.parametrize("name", [OBJECT, "ledger/00000001.json", "manifest.json"])
def test_what_always_arrives_damaged(
    name: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The push ends with an error that names it, and there is no store that anybody could read."""
    damaging(monkeypatch, lambda found, before: found == name)
    with pytest.raises(ShardCorrupt, match=rf"there/{name}.*\b4\b"):
        push(original, str(tmp_path / "there"), retry=QUICK)
    with pytest.raises(FeatstoreError):
        pull(str(tmp_path / "there"), tmp_path / "back", retry=QUICK)
    monkeypatch.undo()
    push(original, str(tmp_path / "there"), retry=QUICK)
    assert files_of(tmp_path / "there") == files_of(original)


def test_without_reading_back(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing that was sent is read, and the receiver finds the damage."""
    damaging(monkeypatch, lambda name, before: name == OBJECT)
    names = asked_for(monkeypatch)
    push(original, str(tmp_path / "there"), read_back=False, retry=QUICK)
    assert set(names) == {"manifest.json", ".partial-manifest.json", "ledger/complete.json"}
    with pytest.raises(ShardCorrupt, match=OBJECT):
        pull(str(tmp_path / "there"), tmp_path / "back", retry=QUICK)


def test_a_damaged_store_is_not_pushed(store: Path, tmp_path: Path) -> None:
    """It is told before it is sent."""
    flip(store / OBJECT)
    with pytest.raises(ShardCorrupt, match=r"8-15.*fields/cls"):
        push(store, str(tmp_path / "there"), retry=QUICK)
    assert not (tmp_path / "there/manifest.json").exists()
    assert not (tmp_path / "there" / OBJECT).exists()


def test_stores_that_are_not_whole(store: Path, tmp_path: Path) -> None:
    """An unfinished store is neither pushed nor pulled."""
    (store / "ledger/complete.json").unlink()
    with pytest.raises(StoreIncomplete, match="extract"):
        push(store, str(tmp_path / "there"), retry=QUICK)
    with pytest.raises(StoreIncomplete):
        pull(str(store), tmp_path / "back", retry=QUICK)
    with pytest.raises(StoreNotFound):
        pull(str(tmp_path / "nothing"), tmp_path / "back", retry=QUICK)
    assert not (tmp_path / "there").exists()


def test_another_store_is_there(original: Path, another: Path, tmp_path: Path) -> None:
    """It stays, unless it is to be replaced; then nothing of it is left."""
    there = tmp_path / "there"
    push(original, str(there), retry=QUICK)
    with pytest.raises(ManifestMismatch, match="--replace"):
        push(another, str(there), retry=QUICK)
    assert files_of(there) == files_of(original)
    push(another, str(there), replace=True, retry=QUICK)
    assert files_of(there) == files_of(another)


def test_half_of_another_store_is_there(original: Path, another: Path, tmp_path: Path) -> None:
    """A push that was stopped belongs to its store."""
    there = tmp_path / "there"

    def work() -> None:
        die_at(LocalPlace, "_write", 12)
        push(original, str(there), jobs=1, retry=QUICK)

    assert wait(fork(work)) == KILLED
    with pytest.raises(ManifestMismatch, match="--replace"):
        push(another, str(there), retry=QUICK)
    push(another, str(there), replace=True, retry=QUICK)
    left = {
        name: data for name, data in files_of(there).items() if not name.startswith(".partial-")
    }
    assert left == files_of(another)


def test_a_push_keeps_off_other_files(original: Path, tmp_path: Path) -> None:
    """A folder with somebody's files gets no store."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there/thesis.tex").write_text("all of it")
    with pytest.raises(StoreError, match=r"\b1\b.*thesis\.tex"):
        push(original, str(tmp_path / "there"), retry=QUICK)
    assert list(files_of(tmp_path / "there")) == ["thesis.tex"]


def test_pulling_over_another_store(original: Path, another: Path, store: Path) -> None:
    """It stays, unless it is to be replaced; objects that both have do not travel."""
    with pytest.raises(ManifestMismatch, match="--replace"):
        pull(str(another), store, retry=QUICK)
    assert files_of(store) == files_of(original)
    pull(str(another), store, replace=True, retry=QUICK)
    assert files_of(store) == files_of(another)
    assert beside(store) == []


def test_a_new_version_takes_little(store: Path, tmp_path: Path) -> None:
    """Of a store whose manifest alone has changed, no object travels, there or back; readers keep the old one."""
    there, back = tmp_path / "there", tmp_path / "back"
    push(store, str(there), retry=QUICK)
    pull(str(there), back, retry=QUICK)
    reader = FeatureStore.open(back)
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["file_crc32c"]
    manifest["created_by"]["note"] = "a second look"
    (store / "manifest.json").write_text(json.dumps(manifest))
    (store / "ledger/complete.json").unlink()
    mark_complete(store, [read_entry(store, shard) for shard in range(3)])
    sent = push(store, str(there), replace=True, retry=QUICK)
    got = pull(str(there), back, replace=True, retry=QUICK)
    assert files_of(back) == files_of(there) == files_of(store)
    assert min(sent.skipped_files, got.skipped_files) >= 18
    assert max(sent.bytes, got.bytes) < 6000
    assert reader.gather("cls", [0, 19]).shape == (2, 2, 6)


def test_other_things_in_the_way_of_a_pull(original: Path, tmp_path: Path) -> None:
    """A file and a folder of other things stay; an empty folder is taken, also one behind a link."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    for name in ("file", "full"):
        with pytest.raises(StoreNotFound):
            pull(str(original), tmp_path / name, retry=QUICK)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    pull(str(original), tmp_path / "link", retry=QUICK)
    assert files_of(tmp_path / "empty") == files_of(original)
    assert (tmp_path / "link").is_symlink()


def test_two_pulls_into_one_folder(original: Path, tmp_path: Path) -> None:
    """The second one is told of the first."""
    contents = local_contents(original)
    with unfinished(tmp_path / "back", contents), pytest.raises(StoreBusy, match="back"):
        pull(str(original), tmp_path / "back", retry=QUICK)


def test_a_disk_without_room(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said before anything travels."""
    monkeypatch.setattr(landing, "free_bytes", lambda path: 100)
    with pytest.raises(StoreWriteError, match="100"):
        pull(str(original), tmp_path / "back", retry=QUICK)


def test_cards_and_signatures_travel(store: Path, tmp_path: Path) -> None:
    """What people and tools put beside a store goes with it, and changes with it; a link is not followed."""
    for name in EXTRAS:
        (store / name).write_text(f"first {name}")
    there, back = tmp_path / "there", tmp_path / "back"
    push(store, str(there), retry=QUICK)
    pull(str(there), back, retry=QUICK)
    assert files_of(back) == files_of(there) == files_of(store)
    (store / "README.md").write_text("other")
    assert push(store, str(there), retry=QUICK).files == 1
    pull(str(there), back, retry=QUICK)
    assert (back / "README.md").read_text() == "other"
    (tmp_path / "secret").write_text("of somebody else")
    (store / "README.md").unlink()
    (store / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match=r"README\.md"):
        push(store, str(there), retry=QUICK)
    assert (there / "README.md").read_text() == "other"


def test_metadata_is_not_believed(store: Path, tmp_path: Path) -> None:
    """What a container's library wrote is kept, in any spelling; what says something else is made anew."""
    group = json.loads((store / "valid/zarr.json").read_text())
    (store / "valid/zarr.json").write_text(json.dumps(group))
    other = json.loads((store / "label/zarr.json").read_text())
    other["codecs"].append({"name": "numcodecs.pickle"})
    (store / "label/zarr.json").write_text(json.dumps(other))
    report = pull(str(store), tmp_path / "back", retry=QUICK)
    assert (tmp_path / "back/valid/zarr.json").read_text() == json.dumps(group)
    assert "pickle" not in (tmp_path / "back/label/zarr.json").read_text()
    assert len(report.notes) == 1
    assert "label/zarr.json was made anew" in report.notes[0]
    assert verify(tmp_path / "back").sound


def rewrite_entry(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change an entry as somebody who also makes its seal, and the mark, anew."""
    entry = read_entry(store, 1).model_dump(mode="json")
    change(entry)
    record = read_entry(store, 1).model_validate(entry)
    (store / "ledger/00000001.json").write_bytes(entry_bytes(record))
    mark = json.loads((store / "ledger/complete.json").read_text())
    mark.pop("file_crc32c")
    entries = b"".join((store / f"ledger/0000000{shard}.json").read_bytes() for shard in range(3))
    mark["entries_sha256"] = hashlib.sha256(entries).hexdigest()
    (store / "ledger/complete.json").write_text(json.dumps(mark))


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "fields/cls/c/0/0/0", "ledger/x"])
def test_entries_that_name_other_files(name: str, store: Path, tmp_path: Path) -> None:
    """A shard has the objects that its container gives it, and no other."""

    def rename(entry: dict[str, Any]) -> None:
        entry["objects"][name] = entry["objects"].pop(OBJECT)

    rewrite_entry(store, rename)
    with pytest.raises(ShardCorrupt):
        pull(str(store), tmp_path / "a/back", retry=QUICK)
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".partial-back.pull"]


def test_entries_that_lie_about_sizes(store: Path, tmp_path: Path) -> None:
    """What the shards have together is bounded by what was said, and compared with the disk, first."""

    def grow(entry: dict[str, Any]) -> None:
        entry["objects"][OBJECT].update(bytes=2**60, block_bytes=2**60, crc32c="00000000")

    rewrite_entry(store, grow)
    with pytest.raises(ShardCorrupt):
        pull(str(store), tmp_path / "back", retry=QUICK)


def test_links_in_a_copy_are_not_followed(original: Path, store: Path, tmp_path: Path) -> None:
    """Mending a copy from somebody else writes nothing outside of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(store / "label/c")
    (store / "label/c").symlink_to(outside)
    with pytest.raises(StoreWriteError, match="link"):
        pull(str(original), store, retry=QUICK)
    assert list(outside.iterdir()) == []


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that are read from local places."""
    names: list[str] = []
    read = LocalPlace._pieces

    def spy(place: LocalPlace, name: str, start: int) -> Iterator[tuple[int, bytes]]:
        names.append(name)
        return read(place, name, start)

    monkeypatch.setattr(LocalPlace, "_pieces", spy)
    return names


PARTS = {
    "fields": (Part(fields=("cls",)), range(20)),
    "rows": (Part(rows=slice(9, 14)), range(9, 14)),
    "where": (Part(where=("*/1?.png", "folder/3.png"), fields=("grid2",)), [3, *range(10, 20)]),
    "both": (Part(where=("*/1?.png",), rows=slice(-4, None)), range(16, 20)),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_a_store(
    name: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pushed or pulled, it is the store that subset makes, complete, and nothing is left beside it."""
    part, rows = PARTS[name]
    expected = subset(original, tmp_path / "expected", rows=list(rows), fields=part.fields or None)
    local = tmp_path / "local/store"
    shutil.copytree(original, local)
    names = asked_for(monkeypatch)
    pull(str(original), tmp_path / "a/back", part=part, retry=QUICK)
    fields = {path.split("/")[1] for path in names if path.startswith("fields/")}
    shards = {path.split("/")[3] for path in names if path.startswith("fields/")}
    assert fields == set(part.fields or ("cls", "grid2"))
    assert shards == {str(row // 8) for row in rows}
    push(local, str(tmp_path / "b/there"), part=part, retry=QUICK)
    for path in (tmp_path / "a/back", tmp_path / "b/there"):
        found = FeatureStore.open(path)
        assert found.fingerprint == expected.fingerprint
        assert found.sample_ids == FeatureStore.open(tmp_path / "expected").sample_ids
        usable = np.flatnonzero(found.valid)
        for cls in found.manifest.fields:
            old = FeatureStore.open(original).gather(cls, np.asarray(list(rows))[usable])
            np.testing.assert_array_equal(found.gather(cls, usable), old)
        assert verify(path).sound
        assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert [item.name for item in local.parent.iterdir()] == ["store"]
    again = pull(str(original), tmp_path / "a/back", part=part, retry=QUICK)
    assert (again.files, again.rows) == (0, len(rows))
    assert push(local, str(tmp_path / "b/there"), part=part, retry=QUICK).files == 0


def test_a_part_of_tars(tmp_path: Path) -> None:
    """A tar holds all fields of its rows; only tars with wanted rows travel."""
    store = GOLDEN / "store_v1_webdataset"
    ids = FeatureStore.open(store).sample_ids
    for number, part in enumerate((Part(where=(ids[2],), fields=("cls",)), Part(rows=slice(0, 3)))):
        pull(str(store), tmp_path / f"{number}", part=part, retry=QUICK)
        found = FeatureStore.open(tmp_path / f"{number}")
        assert found.sample_ids == ([ids[2]] if part.where else ids[:3])
        assert verify(tmp_path / f"{number}").sound


@pytest.mark.parametrize("call", [3, 9, 14])
def test_a_killed_pull_of_a_part(call: int, original: Path, tmp_path: Path) -> None:
    """It goes on as a whole one does."""
    part, back = PARTS["where"][0], tmp_path / "back"

    def work() -> None:
        die_at(LocalPlace, "_pieces", call)
        pull(str(original), back, part=part, jobs=1, retry=QUICK)

    assert wait(fork(work)) == KILLED
    assert not back.exists()
    pull(str(original), back, part=part, retry=QUICK)
    assert FeatureStore.open(back).num_rows == 11
    assert beside(back) == []


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(fields=("CLS",)), r"CLS.*grid2"),
        (Part(where=("train/*",)), r"\b20\b.*'train/.'"),
        (Part(rows=slice(20, 30)), r"\b20\b.*20:30"),
    ],
)
def test_parts_that_do_not_exist(part: Part, message: str, original: Path, tmp_path: Path) -> None:
    """The error says what there is; nothing is written."""
    with pytest.raises(ConfigError, match=message):
        pull(str(original), tmp_path / "back", part=part, retry=QUICK)
    with pytest.raises(ConfigError, match=message):
        push(original, str(tmp_path / "there"), part=part, retry=QUICK)
    assert not (tmp_path / "there").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("move", [pull, push])
def test_another_part_is_there(move: Any, store: Path, tmp_path: Path) -> None:
    """A part is replaced by another one only where that was asked for."""
    target = tmp_path / "target/part"
    arguments = (str(store), target) if move is pull else (store, str(target))
    move(*arguments, part=PARTS["fields"][0], retry=QUICK)
    with pytest.raises(ManifestMismatch, match="--replace"):
        move(*arguments, part=PARTS["rows"][0], retry=QUICK)
    move(*arguments, part=PARTS["rows"][0], replace=True, retry=QUICK)
    assert FeatureStore.open(target).num_rows == 5
    assert beside(store) == beside(target) == []


def test_progress_counts_bytes(original: Path, tmp_path: Path) -> None:
    """It ends at what has travelled, and never goes beyond what is said to come."""
    told: list[tuple[int, int]] = []
    report: TransferReport = push(
        original, str(tmp_path / "there"), retry=QUICK, progress=lambda *two: told.append(two)
    )
    assert all(done <= total for done, total in told)
    done, total = told[-1]
    assert done == total > 2 * report.bytes  # sent, and read back
    # The bar does not stand at its end while files are read back.
    assert all(done > 0.8 * told[-1][0] for done, total in told if done == total)


def test_commands(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """push and pull as people call them, and as scripts do."""
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    assert main(["push", str(original), there]) == 0
    assert "complete, 20 rows" in capsys.readouterr().out
    assert main(["pull", f"file://{there}", back, "--json", "--jobs", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["url"]) == (20, f"file://{there}")
    arguments = [
        "--fields",
        "cls",
        "--where",
        "*/1?.png",
        "--where",
        "folder/3.png",
        "--rows",
        "4:",
    ]
    assert main(["pull", there, f"{back}-part", *arguments]) == 0
    assert "complete, 10 rows" in capsys.readouterr().out
    assert main(["push", back, there, "--no-read-back"]) == 0
    assert "unchanged" in capsys.readouterr().out
    assert main(["pull", str(tmp_path / "nothing"), back]) == 2
    assert "not a feature store" in capsys.readouterr().err
    assert main(["pull", "s3://bucket/x", back, "--option", "colour=red"]) == 2
    assert "colour" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pull", "s3://bucket/x", back, "--option", "colour"])
