"""A thousand flipped bytes: each is found by verify, and no reader ever gives another value than the one written.

``FEATSTORE_FLIPS=100000 pytest tests/featstore/maintenance/test_flipped_bytes.py`` is a soak.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.errors import FeatstoreError
from featstore.format.manifest_records import RaggedEncoding, TopKEncoding
from featstore.maintenance.verify import verify
from tests.featstore import golden

FLIPS = int(os.environ.get("FEATSTORE_FLIPS", "1000"))
SHARE = {"zarr": 0.8, "webdataset": 0.2}
FIELDS = ("cls", "grid2", "bits", "packed", "codes_both", "logits", "points", "caption")
"""float16, float32, bfloat16, zstd, int8 with scales and an artefact, top-k, ragged, text."""


def read(path: Path) -> dict[str, Any]:
    """All that a reader can get out of a store."""
    store = FeatureStore.open(path)
    rows = np.flatnonzero(store.valid)
    values: dict[str, Any] = {
        "ids": store.sample_ids,
        "valid": store.valid.copy(),
        "labels": store.labels.copy(),
        "hashes": store.content_sha256.copy(),
        "invalid": store.invalid_rows(),
        "rows": store.rows_of(store.sample_ids),
    }
    for name, spec in store.manifest.fields.items():
        if isinstance(spec.encoding, TopKEncoding):
            values[name] = tuple(store.gather_topk(name, rows))
        elif isinstance(spec.encoding, RaggedEncoding):
            values[name] = tuple(store.gather_ragged(name, rows))
        else:
            values[name] = store.gather(name, rows)
    for name in store.manifest.artefacts:
        values[f"artefact {name}"] = store.artefact(name)
    return values


def same(found: Any, expected: Any) -> bool:
    """Equal to the last bit."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            same(found[key], expected[key]) for key in expected
        )
    if isinstance(expected, tuple):
        return all(same(a, b) for a, b in zip(found, expected, strict=True))
    if isinstance(expected, np.ndarray):
        if found.dtype != expected.dtype or found.shape != expected.shape:
            return False
        if expected.dtype == object:
            return bool((found == expected).all())
        return bool(found.tobytes() == expected.tobytes())
    return bool(found == expected)


def files_of(path: Path) -> list[Path]:
    """Every file of a store, but for empty ones and those that only coordinate runs."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return [file for file in files if file.stat().st_size and not file.name.startswith(".")]


@pytest.fixture
def fewer_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """One field of each kind: the smaller the store, the more flips in the same time."""
    chosen = {name: golden.FIELDS[name] for name in FIELDS}
    monkeypatch.setattr(golden, "FIELDS", chosen)
    monkeypatch.setattr(golden, "ROWS", 7)
    monkeypatch.setattr(golden, "IDS", golden.IDS[:7])


def judge(path: Path, what: str, original: dict[str, Any]) -> list[str]:
    """What is wrong with how a damaged store is treated."""
    wrong = []
    try:
        if not verify(path).damages:
            wrong.append(f"{what}: not found by verify")
    except FeatstoreError:
        pass  # the manifest: nothing can be judged without it
    except Exception as error:  # any other is what this test is there to find
        wrong.append(f"{what}: verify raised {error!r}")
    try:
        if not same(read(path), original):
            wrong.append(f"{what}: other values were read")
    except FeatstoreError:
        pass
    except Exception as error:
        wrong.append(f"{what}: reading raised {error!r}")
    return wrong


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_fields")
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_flipped_bytes(tmp_path: Path, container: Any) -> None:
    """One byte at a time, anywhere in any file: found, and refused or without effect."""
    path = golden.write(tmp_path / "s", container)
    original = read(path)
    assert verify(path).sound
    files = files_of(path)
    generator = random.Random(0)
    wrong: list[str] = []
    hit: set[Path] = set()
    for _ in range(max(1, int(FLIPS * SHARE[container]))):
        file = generator.choice(files)
        place = generator.randrange(file.stat().st_size)
        mask = generator.choice([1 << generator.randrange(8), generator.randrange(1, 256)])
        with file.open("r+b", buffering=0) as handle:
            handle.seek(place)
            before = handle.read(1)
            handle.seek(place)
            handle.write(bytes([before[0] ^ mask]))
            what = f"{file.relative_to(path)}, byte {place}, {before!r} ^ {mask:#x}"
            wrong += judge(path, what, original)
            handle.seek(place)
            handle.write(before)
        hit.add(file)
    assert wrong == []
    assert verify(path).sound
    assert same(read(path), original)
    if FLIPS * SHARE[container] >= 8 * len(files):
        assert hit == set(files)


def _truncate(file: Path, generator: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: generator.randrange(len(data))])


def _append(file: Path, generator: random.Random) -> None:
    file.write_bytes(file.read_bytes() + generator.randbytes(generator.randrange(1, 600)))


def _delete(file: Path, generator: random.Random) -> None:
    file.unlink()


def _zero(file: Path, generator: random.Random) -> None:
    """A page that the disk never got."""
    data = bytearray(file.read_bytes())
    start = generator.randrange(len(data))
    stop = min(len(data), start + 512)
    if not any(data[start:stop]):
        start, stop = 0, len(data)
    data[start:stop] = bytes(stop - start)
    file.write_bytes(data)


def _swap(file: Path, generator: random.Random) -> None:
    """With another file of the same store, of the same size if there is one."""
    store = next(parent for parent in file.parents if (parent / "manifest.json").exists())
    data = file.read_bytes()
    others = [item for item in files_of(store) if item.read_bytes() != data]
    alike = [item for item in others if item.stat().st_size == len(data)]
    other = generator.choice(alike or others)
    file.write_bytes(other.read_bytes())
    other.write_bytes(data)


@pytest.mark.usefixtures("fewer_fields")
@pytest.mark.parametrize("damage", [_truncate, _append, _delete, _zero, _swap])
def test_torn_files(tmp_path: Path, damage: Callable[[Path, random.Random], None]) -> None:
    """Cut off, too long, gone, zero-filled or exchanged, any file: found, and refused or without effect."""
    sound = golden.write(tmp_path / "s", "zarr")
    original = read(sound)
    generator = random.Random(1)
    wrong: list[str] = []
    content = {file: file.read_bytes() for file in files_of(sound)}
    for _ in range(max(20, FLIPS // 25)):
        file = generator.choice(list(content))
        name = file.relative_to(sound)
        if damage is _zero and not any(file.read_bytes()):
            continue
        if damage is _delete and name.name == "complete.json":
            continue  # as if the run had been stopped just before: not damage, but said
        damage(file, generator)
        wrong += judge(sound, f"{damage.__name__} {name}", original)
        for item, data in content.items():
            if not item.exists() or item.read_bytes() != data:
                item.write_bytes(data)
    assert wrong == []


@pytest.mark.usefixtures("fewer_fields")
def test_objects_of_another_store(tmp_path: Path) -> None:
    """The same file of a store with other numbers: of its size, and still not ours."""
    sound = golden.write(tmp_path / "s", "zarr")
    other = golden.write(tmp_path / "other", "zarr")
    for file in files_of(other):
        if "c" in file.relative_to(other).parts:
            file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    for file in files_of(sound):
        name = file.relative_to(sound)
        if "c" not in name.parts:
            continue
        kept = file.read_bytes()
        file.write_bytes((other / name).read_bytes())
        report = verify(sound)
        shard = int(name.parts[name.parts.index("c") + 1])
        assert report.damaged_shards == [shard], name
        assert {item.object for item in report.damages} == {name.as_posix()}
        with pytest.raises(FeatstoreError):
            read(sound)
        file.write_bytes(kept)
    assert verify(sound).sound
