"""Interrupted transfers resume, damage at either side is mended, and a replaced store is never half there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.containers import make_backend
from featstore.errors import FeatstoreError, RemoteError, ShardCorrupt, StoreError, StoreNotFound
from featstore.files import atomic
from featstore.format.ledger import read_entry
from featstore.format.manifest import read_manifest
from featstore.maintenance.list_and_delete import delete_store
from featstore.maintenance.signing import MAKE_KEYS, check_signature, sign
from featstore.maintenance.verify import verify
from featstore.places.base import Retry
from featstore.places.local import LocalPlace
from featstore.sharing import partial_folder
from featstore.sharing import pull as pull_module
from featstore.sharing import push as push_module
from featstore.sharing.comparisons import BlockSums
from featstore.sharing.part import Part
from featstore.sharing.published_stores import delete_published, find_published
from featstore.sharing.pull import pull
from featstore.sharing.push import push
from featstore.sharing.verify_url import verify_url
from tests.conftest import ROOT
from tests.featstore.processes import die_at, fork, wait
from tests.featstore.stores import field, make_columns, make_manifest, write_store
from tests.servers.answers import serve_answers
from tests.servers.fixtures import OwnBucket

QUICK = Retry(attempts=2, first_s=0.001, most_s=0.01, timeout_s=10)

KILLED = -signal.SIGKILL

MANIFEST = make_manifest(num_rows=20, shard_rows=8)

OBJECT = "fields/cls/c/1/0/0"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 3 shards of 6 objects."""
    return write_store(tmp_path / "made/store", MANIFEST, make_columns(MANIFEST))


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """Another store."""
    manifest = make_manifest(num_rows=10, shard_rows=8)
    return write_store(tmp_path / "made/another", manifest, make_columns(manifest, seed=1))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A store with an object of a megabyte, in many blocks."""
    manifest = make_manifest(num_rows=2000, shard_rows=2000, views=1, fields={"cls": field(256)})
    return write_store(tmp_path / "made/large", manifest, make_columns(manifest))


def files_of(folder: Path) -> dict[str, bytes]:
    """Files below a folder; links are not followed."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in (".lock", ".publish")
    }


def flip(path: Path, at: int = 3) -> None:
    """Change a bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def hidden(folder: Path) -> list[str]:
    """Temporary things in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# ---------------------------------------------------------------- resuming inside an object


def counting(monkeypatch: pytest.MonkeyPatch, stop_after: int | None) -> dict[str, int]:
    """Count the bytes that local places send, by name; after so many bytes of one file, the transfer is interrupted."""
    sent: dict[str, int] = {}
    read = LocalPlace._pieces

    def pieces(place: LocalPlace, name: str, start: int) -> Any:
        for offset, piece in read(place, name, start):
            for at in range(0, len(piece), 50_000):
                part = piece[at : at + 50_000]
                sent[name] = sent.get(name, 0) + len(part)
                yield offset + at, part
                if stop_after is not None and sent[name] >= stop_after:
                    raise PermissionError(13, "the network is gone")

    monkeypatch.setattr(LocalPlace, "_pieces", pieces)
    return sent


def test_a_download_resumes_inside_an_object(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that have arrived are not fetched again, and a damaged one is."""
    name = "fields/cls/c/0/0/0"
    record = read_entry(large, 0).objects[name]
    with monkeypatch.context() as patch:
        counting(patch, 500_000)
        with pytest.raises(RemoteError):
            pull(str(large), tmp_path / "back", jobs=1, retry=QUICK)
    (half,) = (tmp_path / ".partial-back.pull").glob(".partial-*-arriving")
    kept = half.stat().st_size
    assert 500_000 - 50_000 <= kept <= 500_000 + record.block_bytes
    flip(half, at=300_000)
    with monkeypatch.context() as patch:
        sent = counting(patch, None)
        report = pull(str(large), tmp_path / "back", retry=QUICK)
    assert report.damaged == ()
    good = 300_000 // record.block_bytes * record.block_bytes
    assert sent[name] == record.bytes - good
    assert report.skipped_bytes >= good
    assert files_of(tmp_path / "back") == files_of(large)
    assert verify(tmp_path / "back").sound


def test_damage_inside_an_object_costs_the_rest_of_it(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged block ends the attempt, and the next one begins there."""
    name = "fields/cls/c/0/0/0"
    record = read_entry(large, 0).objects[name]
    sent = counting(monkeypatch, None)
    read = LocalPlace._pieces
    left = [1]

    def damaged(place: LocalPlace, wanted: str, start: int) -> Any:
        for offset, piece in read(place, wanted, start):
            bad = wanted == name and offset >= 400_000 and bool(left)
            if bad:
                left.clear()
            yield offset, bytes(len(piece)) if bad else piece

    monkeypatch.setattr(LocalPlace, "_pieces", damaged)
    report = pull(str(large), tmp_path / "back", retry=QUICK)
    assert len(report.damaged) == 1
    assert name in report.damaged[0]
    assert sent[name] <= record.bytes + 100_000 + 2 * record.block_bytes
    assert files_of(tmp_path / "back") == files_of(large)


def test_an_interrupt_ends_at_once_and_names_the_command() -> None:
    """Ctrl-C while a server is silent: the process ends before the server answers, without a traceback."""
    over = threading.Event()
    previous = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job ignores it, and its children

    def silent(request: Any) -> Any:
        over.wait(600)
        yield 200, {"content-length": "5"}

    with serve_answers(silent) as server:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "featstore.cli.main", "pull", server.url, "nowhere"]
        with subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            try:
                while not server.requests and process.poll() is None:
                    time.sleep(0.05)
                process.send_signal(signal.SIGINT)
                _, text = process.communicate(timeout=200)
            finally:
                process.kill()
                over.set()
                signal.signal(signal.SIGINT, previous)
        assert process.returncode == 130
        assert "Traceback" not in text


@pytest.mark.parametrize("move", ["push", "pull"])
def test_an_interrupt_says_how_to_resume(
    move: str,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was done, and that the same command resumes; then it does."""
    words = [move, str(store), str(tmp_path / "there"), "--jobs", "1"]
    name = "_write" if move == "push" else "_pieces"
    original, left = getattr(LocalPlace, name), [8]

    def interrupt(*arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(LocalPlace, name, interrupt)
            assert main(words) == 130
    finally:
        signal.signal(signal.SIGINT, previous)
    assert f"featstore {move}" in capsys.readouterr().err
    assert main(words) == 0
    assert files_of(tmp_path / "there") == files_of(store)


# ---------------------------------------------------------------- replacing and deleting


def steps_of_replacing(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """Without renameat2 where ``whole`` is false."""
    if not whole:

        def unknown(one: Path, other: Path) -> None:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(partial_folder, "exchange", unknown)


@pytest.mark.parametrize(("function", "call"), [("replace", 0), ("unlink", 2), ("rmtree", 0)])
def test_a_killed_replacement_leaves_a_store(
    function: str, call: int, store: Path, another: Path, tmp_path: Path
) -> None:
    """At every moment of ``pull --replace`` one of the two stores has the name; the next pull tidies up."""
    target = tmp_path / "here/target"
    pull(str(store), target, retry=QUICK)

    def work() -> None:
        module = shutil if function == "rmtree" else Path
        publish = partial_folder.publish_folder

        def armed(*arguments: Any, **options: Any) -> None:
            die_at(module, function, call)
            publish(*arguments, **options)

        pull_module.publish_folder = armed  # type: ignore[attr-defined]
        pull(str(another), target, replace=True, jobs=1, retry=QUICK)

    assert wait(fork(work)) == KILLED
    assert FeatureStore.open(target).num_rows in (10, 20)
    pull(str(another), target, replace=True, retry=QUICK)
    assert files_of(target) == files_of(another)
    assert hidden(target.parent) == []


@pytest.mark.parametrize("call", [1, 2])
def test_a_file_system_without_exchange(
    call: int, store: Path, another: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its two renames, the same pull completes the replacement, and nothing is lost before."""
    steps_of_replacing(monkeypatch, whole=False)
    target = tmp_path / "here/target"
    pull(str(store), target, retry=QUICK)

    def work() -> None:
        replace, left = Path.replace, [call]

        def deadly(path: Path, other: Path) -> Any:
            if path in (target, target.parent / ".partial-target.pull"):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, other)

        Path.replace = deadly  # type: ignore[assignment, method-assign]
        pull(str(another), target, replace=True, jobs=1, retry=QUICK)

    assert wait(fork(work)) == KILLED
    pull(str(another), target, replace=True, retry=QUICK)
    assert files_of(target) == files_of(another)
    assert hidden(target.parent) == []


def test_a_killed_deletion_is_completed(store: Path) -> None:
    """The next deletion removes what is left; a store of a similar name stays."""
    similar = store.parent / ".deleted-store-x-abcdefgh"
    similar.mkdir()

    def work() -> None:
        die_at(shutil, "rmtree", 0)
        delete_store(store)

    assert wait(fork(work)) == KILLED
    assert not store.exists()
    assert len(hidden(store.parent)) == 2
    assert main(["delete", str(store), "--yes"]) == 0
    assert hidden(store.parent) == [similar.name]
    with pytest.raises(StoreNotFound):
        delete_store(store)


def test_leftovers_at_the_destination(store: Path, tmp_path: Path) -> None:
    """Files that a killed push was writing go with the next one, whatever it has to send."""
    there = tmp_path / "there"
    push(store, str(there), retry=QUICK)
    (there / ".partial-abc").write_bytes(b"half")
    assert push(store, str(there), retry=QUICK).files == 0
    assert hidden(there) == []


def test_leftovers_in_a_copy(store: Path, tmp_path: Path) -> None:
    """Files that a killed pull or card was writing go when the copy is pulled again."""
    back = tmp_path / "back"
    pull(str(store), back, retry=QUICK)
    for name in (".partial-abc", "ledger/.partial-abc", ".partial-def-arriving"):
        (back / name).write_bytes(b"half")
    assert pull(str(store), back, retry=QUICK).files == 0
    assert verify(back).leftovers == []
    assert files_of(back) == files_of(store)
    (back / ".partial-abc").write_bytes(b"half")
    assert main(["card", str(back)]) == 0
    assert verify(back).leftovers == []


# ---------------------------------------------------------------- mending


@pytest.mark.parametrize("name", [OBJECT, "ledger/00000001.json", "sample_id/zarr.json"])
def test_push_mends_damage_at_the_destination(name: str, store: Path, tmp_path: Path) -> None:
    """A flipped byte and a missing file are sent again, and named; only without reading back sizes are enough."""
    there = tmp_path / "there"
    push(store, str(there), retry=QUICK)
    flip(there / name)
    (there / "valid/c/0").unlink()
    assert push(store, str(there), read_back=False, dry_run=True, retry=QUICK).files <= 2
    report = push(store, str(there), retry=QUICK)
    assert report.files == 2
    assert any(name in text for text in report.damaged)
    assert files_of(there) == files_of(store)


def test_push_mends_a_bucket(store: Path, s3: OwnBucket) -> None:
    """The same over S3; pull sends its user to push, and verify finds it at the place."""
    url = f"{s3.url}/store"
    push(store, url, retry=QUICK)
    data = bytearray(s3.get(f"store/{OBJECT}"))
    data[5] ^= 1
    s3.put(f"store/{OBJECT}", bytes(data))
    report = verify_url(url, retry=QUICK)
    assert [(item.object, item.shard) for item in report.damages] == [(OBJECT, 1)]
    assert "featstore push" in report.damages[0].advice
    assert push(store, url, retry=QUICK).files == 1
    assert verify_url(url, retry=QUICK).sound
    assert s3.files("store") == files_of(store)


def test_a_pushed_part_is_compared(store: Path, tmp_path: Path) -> None:
    """Pushed again, a part that is damaged there is an error; --replace mends it."""
    there, part = tmp_path / "there", Part(fields=("cls",))
    push(store, str(there), part=part, retry=QUICK)
    assert push(store, str(there), part=part, retry=QUICK).files == 0
    flip(there / OBJECT)
    with pytest.raises(ShardCorrupt, match=OBJECT):
        push(store, str(there), part=part, retry=QUICK)
    push(store, str(there), part=part, replace=True, retry=QUICK)
    assert verify_url(str(there), retry=QUICK).sound
    assert hidden(store.parent) == []


@pytest.mark.parametrize("interrupted", [False, True])
def test_replacing_compares_objects(
    interrupted: bool, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal entries of the store that is replaced do not stand for its objects, which may be damaged."""
    there = tmp_path / "there"
    push(store, str(there), retry=QUICK)
    flip(there / OBJECT)
    manifest = MANIFEST.model_copy(update={"uuid": "0" * 32})
    store = write_store(tmp_path / "again", manifest, make_columns(manifest))
    if interrupted:
        with monkeypatch.context() as patch:
            patch.setattr(push_module, "run_jobs", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                push(store, str(there), replace=True, retry=QUICK)
    push(store, str(there), replace=True, retry=QUICK)
    assert verify_url(str(there), retry=QUICK).sound
    assert files_of(there) == files_of(store)


def test_verify_at_a_url(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of file; a sample reads blocks, not objects; nothing is written."""
    there = tmp_path / "there"
    push(store, str(there), retry=QUICK)
    url = f"file://{there}"
    before = files_of(tmp_path)
    assert main(["verify", url]) == 0
    found = json.loads(
        (capsys.readouterr(), main(["verify", url, "--json"]), capsys.readouterr().out)[2]
    )
    assert (found["sound"], found["complete"], found["shards"]) == (True, True, [3, 3])
    assert found["bytes"] == sum(
        record.bytes for shard in range(3) for record in read_entry(store, shard).objects.values()
    )
    assert main(["verify", url, "--sample", "50"]) == 0
    assert files_of(tmp_path) == before
    for name, kind in (
        (OBJECT, "shard"),
        ("ledger/00000002.json", "ledger"),
        ("sample_id/zarr.json", "metadata"),
    ):
        flip(there / name)
        damages = verify_url(url, retry=QUICK).damages
        assert [(item.object, item.kind) for item in damages] == [(name, kind)]
        assert main(["verify", url]) == 1
        flip(there / name)
    flip(there / OBJECT)
    assert verify_url(url, sample=500, retry=QUICK).damages[0].object == OBJECT
    (there / OBJECT).unlink()
    assert verify_url(url, retry=QUICK).damages[0].object == OBJECT
    with pytest.raises(StoreNotFound):
        verify_url(f"file://{tmp_path}/nothing", retry=QUICK)
    assert main(["verify", url, "--public-key", "KEY.pub"]) == 2


# ---------------------------------------------------------------- cards and signatures


def test_a_replaced_store_takes_its_card_along(store: Path, another: Path, tmp_path: Path) -> None:
    """The licence and the signature of the old store do not stay with the new one; both are named."""
    there = tmp_path / "there"
    for name in ("README.md", "card.html", "model.sig"):
        (store / name).write_text(f"of the first store: {name}")
    push(store, str(there), retry=QUICK)
    report = push(another, str(there), replace=True, retry=QUICK)
    assert files_of(there) == files_of(another)
    assert sorted(note.split()[0] for note in report.notes) == [
        "README.md",
        "card.html",
        "model.sig",
    ]
    pull(str(there), tmp_path / "back", retry=QUICK)
    assert files_of(tmp_path / "back") == files_of(another)


def test_a_killed_replacement_takes_the_card_along(
    store: Path, another: Path, tmp_path: Path
) -> None:
    """Also where the push is resumed after the old manifest has gone."""
    there = tmp_path / "there"
    (store / "README.md").write_text("of the first store")
    push(store, str(there), retry=QUICK)

    def work() -> None:
        die_at(LocalPlace, "_write", 3)
        push(another, str(there), replace=True, jobs=1, retry=QUICK)

    assert wait(fork(work)) == KILLED
    push(another, str(there), replace=True, retry=QUICK)
    assert files_of(there) == files_of(another)


def test_stale_signatures(store: Path, tmp_path: Path) -> None:
    """One that is not of the store's files is refused; one at the place that a new card makes stale is removed."""
    pytest.importorskip("model_signing")
    script = MAKE_KEYS.replace("KEY", str(tmp_path / "KEY"))
    subprocess.run(script, shell=True, check=True, capture_output=True)
    (store / "README.md").write_text("first")
    sign(store, tmp_path / "KEY.pem")
    there, back = tmp_path / "there", tmp_path / "back"
    push(store, str(there), retry=QUICK)
    pull(str(there), back, retry=QUICK)
    assert check_signature(back, tmp_path / "KEY.pub").sound
    (store / "README.md").write_text("second")
    with pytest.raises(StoreError, match=r"model\.sig .*README\.md"):
        push(store, str(there), retry=QUICK)
    (store / "model.sig").unlink()
    report = push(store, str(there), retry=QUICK)
    assert "model.sig" in report.notes[0]
    assert files_of(there) == files_of(store)


# ---------------------------------------------------------------- counts and dry runs


def test_counts_of_files_agree(store: Path, tmp_path: Path) -> None:
    """push and pull count every file of the store, each once."""
    (store / "README.md").write_text("card")
    there, back = tmp_path / "there", tmp_path / "back"
    number, size = len(files_of(store)), sum(map(len, files_of(store).values()))
    for report in (push(store, str(there), retry=QUICK), pull(str(there), back, retry=QUICK)):
        assert (report.files, report.bytes, report.skipped_files) == (number, size, 0)
    for report in (push(store, str(there), retry=QUICK), pull(str(there), back, retry=QUICK)):
        assert (report.files, report.skipped_files, report.skipped_bytes) == (0, number, size)


@pytest.mark.parametrize("part", [Part(), Part(fields=("cls",)), Part(where=("*/1?.png",))])
def test_dry_runs_write_nothing(part: Part, store: Path, tmp_path: Path) -> None:
    """They count what the transfer then moves."""
    there, back = tmp_path / "there", tmp_path / "back"
    if part.whole:
        planned = push(store, str(there), dry_run=True, retry=QUICK)
        assert planned.dry_run
        assert not there.exists()
        done = push(store, str(there), retry=QUICK)
        assert (planned.files, planned.bytes) == (done.files, done.bytes)
        flip(there / OBJECT)
        before = files_of(there)
        assert push(store, str(there), dry_run=True, retry=QUICK).files == 1
        assert files_of(there) == before
        flip(there / OBJECT)
    before = files_of(tmp_path)
    planned = pull(str(store), back, part=part, dry_run=True, retry=QUICK)
    assert files_of(tmp_path) == before
    done = pull(str(store), back, part=part, retry=QUICK)
    assert (planned.files, planned.bytes) == (done.files, done.bytes)
    again = pull(str(store), back, part=part, dry_run=True, retry=QUICK)
    assert (again.files, again.bytes) == (0, 0)


# ---------------------------------------------------------------- commands at URLs


def test_list_and_delete_at_urls(
    store: Path, another: Path, s3: OwnBucket, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stores of a bucket are found with their sizes, and deleted or retracted; other files stay."""
    push(store, f"{s3.url}/a/one", retry=QUICK)
    push(another, f"{s3.url}/two", retry=QUICK)
    s3.put("a/else", b"not of a store")
    found = list(find_published(s3.url, retry=QUICK))
    assert [(item.path, item.rows, item.complete) for item in found] == [
        (f"{s3.url}/a/one", 20, True),
        (f"{s3.url}/two", 10, True),
    ]
    assert main(["list", s3.url]) == 0
    assert f"{s3.url}/a/one" in capsys.readouterr().out
    s3.put("a/one/mine", b"not of the store")
    with pytest.raises(StoreError, match="mine"):
        delete_published(f"{s3.url}/a/one", retry=QUICK)
    s3.delete("a/one/mine")
    assert main(["delete", f"{s3.url}/a/one", "--yes", "--retract", "withdrawn"]) == 0
    fingerprint = FeatureStore.open(store).fingerprint
    text = s3.get("a/one/README.md").decode()
    assert fingerprint in text
    assert "withdrawn" in text
    assert main(["delete", f"{s3.url}/two", "--yes"]) == 0
    assert s3.names() == ["a/else", "a/one/README.md"]
    assert main(["delete", f"{s3.url}/two", "--yes"]) == 2


def test_an_unfinished_store_is_listed(store: Path, tmp_path: Path) -> None:
    """With what is wrong."""
    there = tmp_path / "all/there"
    push(store, str(there), retry=QUICK)
    (there / "manifest.json").rename(there / ".partial-manifest.json")
    (found,) = find_published(f"file://{tmp_path}/all", retry=QUICK)
    assert found.path == f"file://{there}"
    assert found.problem


@pytest.mark.parametrize(
    "words",
    [
        ["subset", "s3://bucket/x", "out", "--fields", "cls"],
        ["merge", "s3://bucket/x", "b", "out"],
        ["split", "s3://bucket/x", "A=0.5", "B=0.5"],
        ["convert", "s3://bucket/x", "out", "--container", "webdataset"],
        ["requantise", "s3://bucket/x", "out", "--dtype", "int8"],
        ["sign", "s3://bucket/x", "--private-key", "KEY.pem"],
        ["append", "s3://bucket/x", "new"],
        ["append", "old", "s3://bucket/x"],
        ["subset", "store", "s3://bucket/x", "--fields", "cls"],
        ["convert", "store", "s3://bucket/x", "--container", "webdataset"],
    ],
)
def test_commands_that_take_folders_only(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A URL is named as it was typed, with the command that brings the store here or there."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert "s3://bucket/x" in text
    assert "featstore pull" in text or "featstore push" in text


# ---------------------------------------------------------------- errors of the system


@pytest.mark.slow
@pytest.mark.parametrize("code", [5, 116])
def test_no_traceback_where_a_disk_fails(
    code: int, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO and ESTALE of any call on files, at any moment: an error of the package, or the transfer succeeds."""
    calls: dict[str, Callable[..., Any]] = {
        name: getattr(os, name) for name in ("open", "lstat", "stat", "fsync", "mkdir", "scandir")
    }
    count, fail_at = [0], [-1]

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == fail_at[0]:
                raise OSError(code, os.strerror(code), "somewhere")
            return function(*arguments, **options)

        return call

    for name, function in calls.items():
        monkeypatch.setattr(os, name, wrap(function))
    number = np.random.default_rng(code)
    for move in (push, pull):
        target = tmp_path / move.__name__
        arguments: Any = (store, str(target)) if move is push else (str(store), target)
        count[0], fail_at[0] = 0, -1
        move(*arguments, jobs=1, retry=QUICK)
        total = count[0]
        for at in number.choice(total, 40, replace=False).tolist():
            fail_at[0] = -1
            shutil.rmtree(target)
            count[0], fail_at[0] = 0, at
            try:
                move(*arguments, jobs=1, retry=QUICK)
            except FeatstoreError as error:
                assert "Traceback" not in str(error)
                fail_at[0] = -1
                move(*arguments, jobs=1, retry=QUICK)
            fail_at[0] = -1
            assert files_of(target) == files_of(store)


def test_a_whole_file_that_was_not_published_is_kept(store: Path, tmp_path: Path) -> None:
    """An object of which all bytes arrived, the last block cut short, is compared when it is resumed, and kept."""
    manifest = read_manifest(store)
    backend = make_backend(store, manifest)
    for name, record in read_entry(store, 2).objects.items():
        sums = BlockSums(backend, 2, name, record)
        assert sums.resume(store / name) == record.bytes
        assert sums.problem() == ""


def test_exchange_is_there(tmp_path: Path) -> None:
    """The tests above run with it where the system has it."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    (other / "inside").mkdir(parents=True)
    try:
        atomic.exchange(one, other)
    except OSError:
        pytest.skip("no renameat2 here")
    assert (one / "inside").is_dir()
