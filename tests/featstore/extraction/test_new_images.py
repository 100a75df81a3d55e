"""extract.py --append: the teacher sees new images only, and what is not as it was is named and refused."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.derive import append as append_module
from featstore.errors import (
    ConfigError,
    ManifestMismatch,
    MissingSamples,
    StoreBusy,
    StoreNotFound,
    TooManyInvalid,
)
from featstore.extraction.config import ExtractConfig, StoreConfig
from featstore.files.locks import shared
from featstore.sources.config import SourceConfig
from featstore.writing import commit as writer
from pipelines import extract as pipeline
from tests.featstore.formula import FormulaTeacher, make_config
from tests.featstore.parts import in_memory, sound
from tests.featstore.processes import die_at, fork, wait
from tests.featstore.stores import leftovers
from tests.images import picture


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: what fsync costs is not what is tested."""
    with in_memory() as folder:
        yield folder


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that a teacher was shown, batch by batch; it is a formula."""
    batches: list[int] = []

    def build(config: object, *, dtype: Any, **rest: object) -> FormulaTeacher:
        return FormulaTeacher(dtype, lambda images, cls: batches.append(len(images)))

    monkeypatch.setattr("featstore.extraction.teachers.build_teacher", build)
    monkeypatch.setattr("featstore.extraction.teachers.check_teacher", lambda *_, **__: None)
    monkeypatch.setattr("featstore.extraction.dry_run.measure_rates", lambda *_, **__: None)
    return batches


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Nine pictures of two classes."""
    folder = tmp_path / "images"
    add(folder, [f"{('cat', 'dog')[number % 2]}/{number:02d}" for number in range(9)])
    return folder


def add(folder: Path, names: list[str], *, first: int = 0) -> None:
    """Put pictures into a folder; those of other numbers differ."""
    for number, name in enumerate(names, start=first):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(37 * number, "PNG"))


def settings(images: Path, path: Path, *, append: bool = True, **changes: Any) -> ExtractConfig:
    """Settings of a run, of one that appends if not said otherwise."""
    return make_config(images, path, append=append, **changes)


def test_only_new_images_are_extracted(
    tmp_path: Path, images: Path, seen: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """In between and behind the old ones, with a class that comes first: the rows that one extraction of all gives."""
    path = tmp_path / "s"
    pipeline.run(settings(images, path, append=False))
    first = FeatureStore.open(path)
    old = {name: first.gather("cls", first.rows_of([name])) for name in first.sample_ids}
    add(images, ["ant/00", "cat/001", "dog/99", "dog/98"], first=20)
    with pytest.raises(ManifestMismatch, match=r"\b4\b.*--append true"):
        pipeline.run(settings(images, path, append=False))
    seen.clear()
    capsys.readouterr()
    pipeline.run(settings(images, path))
    assert sum(seen) == 4 * 2  # two views
    said = capsys.readouterr().out
    assert "new       4 of 13 images" in said
    assert f"4 rows added: {path} is version 2, 13 rows" in said
    store = sound(path)
    assert store.sample_ids[:9] == first.sample_ids
    assert sorted(store.sample_ids[9:]) == store.sample_ids[9:]
    for name, row in old.items():
        np.testing.assert_array_equal(store.gather("cls", store.rows_of([name])), row)
    assert store.manifest.source.class_names == ("cat", "dog", "ant")
    assert store.manifest.source.kind == "folder"
    classes = [store.manifest.source.class_names[label] for label in store.labels]
    assert classes == [name.split("/")[0] for name in store.sample_ids]
    whole = tmp_path / "whole"
    pipeline.run(settings(images, whole, append=False))
    other = FeatureStore.open(whole)
    for field in ("cls", "grid2"):
        expected = other.gather(field, other.rows_of(store.sample_ids))
        np.testing.assert_array_equal(store.gather(field, range(13)), expected)
    seen.clear()
    capsys.readouterr()
    pipeline.run(settings(images, path))
    assert not seen
    assert f"nothing new: {path} has all 13 images" in capsys.readouterr().out
    pipeline.run(settings(images, path, append=False))  # the same images, in another order
    assert not seen


def test_a_store_that_grew_is_repaired(tmp_path: Path, images: Path) -> None:
    """Its images are read in the order of its rows, also where shards have to be made again."""
    path = tmp_path / "s"
    pipeline.run(settings(images, path, append=False))
    add(images, ["ant/00", "cat/001", "dog/99"], first=20)
    pipeline.run(settings(images, path))
    before = sound(path).gather("cls", range(12))
    names = ("fields/cls/c/0/0/0", "fields/grid2/c/2/0/0/0/0", "sample_id/c/2")
    for step in range(2):
        for name in names:
            target = path / name
            target.write_bytes(target.read_bytes()[:-1] + b"x")

        def work(step: int = step) -> None:
            die_at(writer, "publish_shard", step)
            pipeline.run(settings(images, path, append=False, repair=True))

        assert wait(fork(work)) == -signal.SIGKILL
        pipeline.run(settings(images, path, append=False))
        store = sound(path)
        assert store.manifest.version == 2
        np.testing.assert_array_equal(store.gather("cls", range(12)), before)


def test_images_that_are_not_what_they_were(tmp_path: Path, images: Path, seen: list[int]) -> None:
    """Gone, renamed or changed ones are named; nothing is extracted and nothing is left."""
    path = tmp_path / "s"
    pipeline.run(settings(images, path, append=False))
    add(images, ["cat/new"], first=20)
    seen.clear()
    target = images / "dog/01.png"
    sane = target.read_bytes()
    target.write_bytes(picture(999, "PNG"))
    with pytest.raises(MissingSamples, match=r"\b1\b.*dog/01.png"):
        pipeline.run(settings(images, path))
    target.rename(images / "dog/renamed.png")
    with pytest.raises(MissingSamples, match=r"\b1\b.*\b9\b.*dog/01.png"):
        pipeline.run(settings(images, path))
    (images / "dog/renamed.png").unlink()
    target.write_bytes(sane)
    assert not seen
    assert not leftovers(path)
    shutil.copy(target, images / "dog/copy.png")  # equal images are two rows, as in one extraction
    pipeline.run(settings(images, path))
    assert sound(path).num_rows == 11


def test_what_does_not_grow(tmp_path: Path, images: Path) -> None:
    """No store, one in work, settings that are others, and a flag too many."""
    path = tmp_path / "s"
    with pytest.raises(StoreNotFound, match="--append"):
        pipeline.run(settings(images, path))
    pipeline.run(settings(images, path, append=False))
    add(images, ["cat/new"], first=20)
    with shared(path), pytest.raises(StoreBusy):
        pipeline.run(settings(images, path))
    store = StoreConfig(path=str(path), fields=["cls", "grid2"], dtype="float32", shard_rows=4)
    with pytest.raises(ManifestMismatch, match=r"fields\.cls\.dtype"):
        pipeline.run(settings(images, path, store=store))
    with pytest.raises(ConfigError):
        settings(images, path, repair=True)
    (images / "cat/bad.png").write_bytes(b"no picture")
    with pytest.raises(TooManyInvalid):
        pipeline.run(settings(images, path))
    assert sound_but_for_leftovers(path).num_rows == 9
    pipeline.run(settings(images, path, max_invalid_share=0.5))
    store_ = sound(path)
    assert [item.sample_id for item in store_.invalid_rows()] == ["cat/bad.png"]


def sound_but_for_leftovers(path: Path) -> FeatureStore:
    """What was extracted already waits beside the store."""
    assert leftovers(path)
    return FeatureStore.open(path)


def test_eight_bits_with_the_scales_of_the_store(tmp_path: Path, images: Path) -> None:
    """New codes mean what the old ones do."""
    path = tmp_path / "s"
    store = StoreConfig(path=str(path), fields=["cls", "grid2"], dtype="int8", shard_rows=4)
    pipeline.run(settings(images, path, append=False, store=store))
    scales = FeatureStore.open(path).artefact("cls.channels")
    add(images, ["cat/new", "dog/new"], first=20)
    pipeline.run(settings(images, path, store=store))
    grown = sound(path)
    np.testing.assert_array_equal(grown.artefact("cls.channels")["scale"], scales["scale"])
    pipeline.run(settings(images, tmp_path / "float", append=False))
    exact = FeatureStore.open(tmp_path / "float")
    expected = exact.gather("cls", exact.rows_of(grown.sample_ids)).astype(np.float32)
    found = grown.gather("cls", range(11))
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_tars_come_behind_tars(tmp_path: Path) -> None:
    """A mirrored store grows by whole tars; a tar that grew itself is refused before the teacher runs."""
    import io
    import tarfile

    def tar(name: str, keys: list[str], first: int) -> None:
        with tarfile.open(tmp_path / "tars" / f"{name}.tar", "w") as file:
            for number, key in enumerate(keys, start=first):
                data = picture(37 * number, "PNG")
                member = tarfile.TarInfo(f"{key}.png")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))

    (tmp_path / "tars").mkdir()
    tar("b", ["x", "y", "z"], 0)
    path = tmp_path / "s"
    source = SourceConfig(kind="tars", path=str(tmp_path / "tars"))
    store = StoreConfig(path=str(path), fields=["cls", "grid2"], container="webdataset")
    options: Any = {"source": source, "store": store}
    pipeline.run(settings(tmp_path, path, append=False, **options))
    tar("a", ["x", "y"], 10)
    pipeline.run(settings(tmp_path, path, **options))
    grown = sound(path)
    assert grown.sample_ids == ["b/x", "b/y", "b/z", "a/x", "a/y"]
    assert grown.manifest.work.shard_names == ("b", "a")
    pipeline.run(settings(tmp_path, path, append=False, **options))
    tar("b", ["x", "y", "z", "more"], 0)
    with pytest.raises(ConfigError):
        pipeline.run(settings(tmp_path, path, **options))


def test_a_run_that_was_killed_goes_on(tmp_path: Path, images: Path, seen: list[int]) -> None:
    """While the teacher ran, or just before versions change places: the store is whole, and nothing is done twice."""
    path = tmp_path / "s"
    pipeline.run(settings(images, path, append=False))
    add(images, [f"cat/new{i}" for i in range(10)], first=20)
    for module, name, call in ((writer, "publish_shard", 1), (append_module, "exchange", 0)):

        def work(module: Any = module, name: str = name, call: int = call) -> None:
            die_at(module, name, call)
            pipeline.run(settings(images, path))

        assert wait(fork(work)) == -signal.SIGKILL
        assert FeatureStore.open(path).num_rows == 9
    seen.clear()
    pipeline.run(settings(images, path))
    assert not seen
    assert sound(path).num_rows == 19
