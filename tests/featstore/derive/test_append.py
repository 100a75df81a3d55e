"""A finished store that grows: old rows untouched, the version counted up, and at any moment one version whole."""

import errno
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.derive import append as module
from featstore.derive.append import append
from featstore.derive.requantise import requantise
from featstore.derive.subset import subset
from featstore.errors import (
    ConfigError,
    ManifestMismatch,
    ShardCorrupt,
    StoreBusy,
    StoreError,
    StoreWriteError,
)
from featstore.files import atomic
from featstore.files.locks import shared
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import Container
from tests.featstore.backend_tests import Rows, vectors
from tests.featstore.jobs import Steps
from tests.featstore.parts import check, in_memory, joined, made, manifest_of, sound, taken, write
from tests.featstore.processes import fork, wait
from tests.featstore.stores import leftovers, snapshot

OLD = {3: "empty file (0 bytes)", 9: "not a picture"}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: what fsync costs is not what is tested."""
    with in_memory() as folder:
        yield folder


def files(path: Path, shards: range) -> dict[str, tuple[int, bytes]]:
    """Number and bytes of every file of some shards."""
    store = FeatureStore.open(path)
    names = [name for shard in shards for name in store.entry(shard).objects]
    names += [f"ledger/{shard:08d}.json" for shard in shards]
    return {name: ((path / name).stat().st_ino, (path / name).read_bytes()) for name in names}


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
@pytest.mark.parametrize("count", [10, 8])
def test_old_rows_are_untouched(tmp_path: Path, container: Container, count: int) -> None:
    """With and without a last shard that is not full: full shards are the same files, and all rows are as numpy has
    them.
    """
    old, new = made(count, seed=1, invalid={3: OLD[3]}), made(7, seed=2, invalid={6: "gone"})
    path, more = write(old, tmp_path / "s", container), write(new, tmp_path / "new")
    (path / "README.md").write_text("a card")
    before, kept = manifest_of(path), files(path, range(2))
    done = append(path, more)
    assert (done.rows, done.notes) == (7, [])
    assert files(path, range(2)) == kept
    store = check(path, joined(old, new))
    assert (path / "README.md").read_text() == "a card"
    assert store.manifest == done.manifest
    assert store.manifest.uuid == before.uuid
    assert store.manifest.version == 2
    (version,) = store.manifest.history
    expected = {
        "version": 1,
        "created": before.created,
        "rows": count,
        "fingerprint": before.fingerprint,
    }
    assert version.model_dump() == expected
    subset(path, tmp_path / "first", rows=range(count))
    assert manifest_of(tmp_path / "first").source.ids_sha256 == before.source.ids_sha256
    assert "history" not in json.loads((tmp_path / "first/manifest.json").read_bytes())


def test_versions_count_up(tmp_path: Path) -> None:
    """A second time, from the other container, with a new class; what is there already is skipped or refused."""
    parts = [made(5, seed=1), made(6, seed=2), made(4, seed=3)]
    path = write(parts[0], tmp_path / "s")
    append(path, write(parts[1], tmp_path / "b", "webdataset"))
    parts[2].hashes[1] = parts[1].hashes[2]
    third = write(parts[2], tmp_path / "c", source=named(parts[2], ("dog", "bird")))
    with pytest.raises(ConfigError, match=r"\b1\b.*folder3/1.png.*folder2/2.png"):
        append(path, third)
    assert not leftovers(path)
    done = append(path, third, duplicates="skip")
    assert done.rows == 3
    assert "1 rows of" in done.notes[0]
    both = joined(parts[0], parts[1], taken(parts[2], [0, 2, 3]))
    both.label[11:] = np.array([1, 2, -1])[both.label[11:]]
    store = check(path, both)
    assert store.manifest.source.class_names == ("cat", "dog", "bird")
    assert [item.rows for item in store.manifest.history] == [5, 11]
    assert store.manifest.version == 3
    again = append(path, third)
    assert again.rows == 0
    assert "are in the store" in again.notes[0]
    assert manifest_of(path) == store.manifest


def named(rows: Rows, names: tuple[str, ...]) -> dict[str, Any]:
    """A record of the source with other names of classes."""
    from featstore.format.ids import ids_sha256

    source = rows.manifest("zarr").source.model_dump()
    return {**source, "class_names": names, "ids_sha256": ids_sha256(rows.ids)}


def test_room_for_items_may_grow(tmp_path: Path) -> None:
    """Positions of ragged items are counted through all shards, so all are written again; rows stay as they are."""
    old, new = made(9, seed=1), made(3, seed=2)
    record = new.fields["points"]
    encoding = record.encoding.model_copy(update={"most_items": 5000})
    new.fields["points"] = record.model_copy(update={"encoding": encoding})
    path = write(old, tmp_path / "s")
    append(path, write(new, tmp_path / "new"))
    old.fields["points"] = new.fields["points"]
    check(path, joined(old, new))


def test_tars_behind_tars(tmp_path: Path) -> None:
    """A store that mirrors tars grows by tars, of any size; more of a tar that is there cannot be mirrored."""

    def tars(names: str, rows: Rows) -> dict[str, Any]:
        sizes = [rows.num_rows // len(names)] * len(names)
        rows.ids = [
            f"{name}/x{row}" for name, size in zip(names, sizes, strict=True) for row in range(size)
        ]
        return {
            "shard_rows": sizes[0],
            "batch_size": 4,
            "shard_sizes": sizes,
            "shard_names": list(names),
        }

    old, new = vectors(rows=6), vectors(rows=10)
    new.hashes = new.hashes + np.uint8(1)
    path = write(old, tmp_path / "s", "webdataset", work=tars("ab", old))
    kept = files(path, range(2))
    append(path, write(new, tmp_path / "new", "webdataset", work=tars("de", new)))
    assert files(path, range(2)) == kept
    check(path, joined(old, new))
    assert manifest_of(path).work.shard_sizes == (3, 3, 5, 5)
    more = vectors(rows=2)
    more.hashes = more.hashes + np.uint8(2)
    work = tars("e", more)
    more.ids = ["e/y0", "e/y1"]
    with pytest.raises(ConfigError):
        append(path, write(more, tmp_path / "more", "webdataset", work=work))
    more.ids = ["y0", "y1"]
    with pytest.raises(ConfigError):
        append(path, write(more, tmp_path / "plain"))
    assert not leftovers(path)


def test_what_cannot_be_appended(tmp_path: Path) -> None:
    """Rows made otherwise, codes with other scales, a store in work: refused, and nothing has changed."""
    path, more = write(made(6, seed=1), tmp_path / "s"), write(made(5, seed=2), tmp_path / "new")
    for name in ("s", "new"):
        requantise(tmp_path / name, tmp_path / f"{name}8", "int8")
    before = snapshot(path)
    with pytest.raises(ManifestMismatch, match=r"fields\.cls\.dtype"):
        append(path, tmp_path / "new8")
    with pytest.raises(ManifestMismatch, match=r"--append true"):
        append(tmp_path / "s8", tmp_path / "new8")
    with shared(path), pytest.raises(StoreBusy):
        append(path, more)
    with pytest.raises(ConfigError):
        append(path, path)
    assert snapshot(path) == before
    bare = write(made(3, seed=3, labels=False), tmp_path / "bare")
    append(path, bare)
    np.testing.assert_array_equal(sound(path).labels[6:], -1)
    done = append(bare, more)
    assert "its labels are left out" in done.notes[0]
    assert not sound(bare).manifest.source.has_labels


def test_readers_keep_the_version_that_they_opened(tmp_path: Path) -> None:
    """What is mapped stays; rows of full shards are found also where nothing was mapped yet."""
    old = made(10, seed=1)
    path = write(old, tmp_path / "s")
    store, late, last = (FeatureStore.open(path) for _ in range(3))
    last.entry(2)
    first = store.gather("cls", range(10))
    append(path, write(made(7, seed=2), tmp_path / "new"))
    np.testing.assert_array_equal(store.gather("cls", range(10)), first)
    np.testing.assert_array_equal(late.gather("cls", range(8)), first[:8])
    for other in (
        late,
        last,
    ):  # the shard that was written again; its entry was read before, or was not
        with pytest.raises(StoreError, match=r"\b2\b.*\b17\b") as caught:
            other.gather("cls", [9])
        assert not isinstance(caught.value, ShardCorrupt)
    np.testing.assert_array_equal(FeatureStore.open(path).gather("cls", range(10)), first)


def test_a_reader_never_meets_half_a_version(tmp_path: Path) -> None:
    """Opened again and again while the store grows: the old version or the new one."""
    parts = [made(6, seed=seed) for seed in range(1, 4)]
    path = write(parts[0], tmp_path / "s")
    stores = [write(part, tmp_path / f"n{i}") for i, part in enumerate(parts[1:])]
    stop, seen, problems = threading.Event(), set(), []

    def look() -> None:
        while not stop.is_set():
            try:
                seen.add(FeatureStore.open(path).num_rows)
            except Exception as error:
                problems.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for store in stores:
        append(path, store)
    stop.set()
    thread.join()
    assert not problems
    assert seen <= {6, 12, 18}
    check(path, joined(*parts))


@pytest.mark.slow
def test_a_kill_at_each_step(tmp_path: Path) -> None:
    """Before every single call that changes the disk: the old version or the new one, whole; the same command ends at
    the bytes of one that was not killed, and leaves nothing lying about.
    """
    old, new = vectors(rows=6, width=2), vectors(rows=3, width=2)
    new.ids, new.hashes = ["a", "b", "c"], new.hashes + np.uint8(1)
    for rows in (old, new):
        rows.fields.pop("grid")
    more = write(new, tmp_path / "new")
    template = write(old, tmp_path / "template")
    straight = tmp_path / "straight/s"
    copy(template, straight)
    append(straight, more)
    versions = [snapshot(template), snapshot(straight)]
    seen, step = set(), 0
    while True:
        path = tmp_path / f"{step}/s"
        copy(template, path)

        def work(path: Path = path, step: int = step) -> None:
            steps = Steps(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
            steps.patch(setattr, without=["open"])
            module.exchange = steps._wrap("exchange", atomic.exchange)  # type: ignore[assignment, attr-defined]
            append(path, more)

        status = wait(fork(work))
        found = snapshot(path)
        assert found in versions
        seen.add(versions.index(found))
        assert FeatureStore.open(path).num_rows in (6, 9)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        append(path, more)
        assert snapshot(path) == versions[1]
        assert not leftovers(path)
        step += 11
    assert seen == {0, 1}
    assert step > 30
    sound(path)


def copy(source: Path, target: Path) -> None:
    """A copy of a store, without what coordinates runs."""
    import shutil

    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".lock", ".publish"))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK])
def test_disks_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Full shards are then written again, from the old ones, to the same bytes."""
    old, new = made(9, seed=1, invalid={3: OLD[3]}), made(4, seed=2)
    path, more = write(old, tmp_path / "s"), write(new, tmp_path / "new")
    kept = {name: data for name, (_, data) in files(path, range(2)).items() if "ledger" not in name}

    def refuse(*names: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, "_link", refuse)
    append(path, more)
    monkeypatch.undo()
    found = files(path, range(2))
    assert {name: found[name][1] for name in kept} == kept
    check(path, joined(old, new))


def test_disks_without_an_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is as it was, and the message says where the new version is and what to do."""
    path, more = write(made(6, seed=1), tmp_path / "s"), write(made(5, seed=2), tmp_path / "new")
    before = snapshot(path)

    def refuse(*names: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(module, "exchange", refuse)
    with pytest.raises(StoreWriteError):
        append(path, more)
    assert snapshot(path) == before
    monkeypatch.undo()
    append(path, more)
    assert not leftovers(path)
    with pytest.raises(OSError, match="nothing"):
        atomic.exchange(tmp_path / "nothing", path)
    assert sound(path).num_rows == 11


def test_shards_that_were_mended_meanwhile_are_linked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped had linked the damaged file; the next one takes the one that is there."""
    path, more = (
        write(made(9, seed=1), tmp_path / "s", "zarr"),
        write(made(5, seed=2), tmp_path / "new"),
    )
    target = path / "fields/cls/c/0/0/0"
    sane = target.read_bytes()
    target.write_bytes(bytes([sane[0] ^ 1]) + sane[1:])

    def stop(*names: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "exchange", stop)
    with pytest.raises(KeyboardInterrupt):
        append(path, more)
    monkeypatch.undo()
    atomic.write_bytes(target, sane)
    append(path, more)
    sound(path)


def test_histories_that_lie(tmp_path: Path) -> None:
    """Versions count from 1 on and grow; other histories are no manifest. Without one the key is not written."""
    path = write(made(6, seed=1), tmp_path / "s")
    assert "history" not in json.loads((path / "manifest.json").read_bytes())
    append(path, write(made(5, seed=2), tmp_path / "new"))
    values = manifest_of(path).model_dump(mode="json")
    (version,) = values["history"]
    for change in ({"version": 2}, {"rows": 11}, {"rows": 0}, {"more": 1}, {"fingerprint": "x"}):
        with pytest.raises(ValueError, match="history"):
            Manifest.model_validate({**values, "history": [{**version, **change}]})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text and JSON, twice the same store, and an error."""
    path, more = write(made(6, seed=1), tmp_path / "s"), write(made(5, seed=2), tmp_path / "new")
    assert main(["append", str(path), str(more)]) == 0
    assert f"{path}: version 2, 11 rows, 5 of them added" in capsys.readouterr().out
    assert main(["append", str(path), str(more)]) == 0
    assert "nothing to add; version 2, 11 rows" in capsys.readouterr().out
    third = write(made(4, seed=3), tmp_path / "third")
    assert main(["append", str(path), str(third), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["rows"], found["added"]) == (3, 15, 4)
    assert main(["inspect", str(path)]) == 0
    assert "version      3; before: 1 (6 rows, 20" in capsys.readouterr().out
    assert main(["append", str(path), str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
