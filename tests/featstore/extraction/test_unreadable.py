"""Disks, networks and memories that fail for a moment cost time, not images; both phases, and every source."""

import errno
import io
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.config import DataConfig
from distill.data.join_samples import join_samples
from distill.data.pictures import ViewDataset as StudentDataset
from distill.data.pictures import load_batches as load_pictures
from distill.data.rules import rule_of
from distill.data.schedule import CANONICAL, Request
from featstore import FeatureStore
from featstore.errors import MissingSamples, SourceError
from featstore.extraction import unreadable
from featstore.extraction.images import ImageInputs
from featstore.extraction.new_images import find_new
from featstore.extraction.run import run as run_phase_one
from featstore.format.views import ViewSet
from featstore.sources import Source, load, open_source
from featstore.sources.config import SourceConfig
from tests.featstore.formula import FormulaTeacher, make_config, run
from tests.featstore.stores import RULE, snapshot
from tests.images import picture

FAILURES = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EMFILE, "Too many open files"),
    MemoryError(),
]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))


def fail(
    monkeypatch: pytest.MonkeyPatch, where: type[Source], error: BaseException, times: int
) -> Counter[int]:
    """Let the first ``times`` reads of row 3 fail; returns how often each row was read."""
    reads: Counter[int] = Counter()
    real = where.read

    def read(self: Source, row: int) -> bytes:
        reads[row] += 1
        if row == 3 and reads[row] <= times:
            raise error
        return real(self, row)

    monkeypatch.setattr(where, "read", read)
    return reads


def folder_source(images: Path) -> Source:
    return open_source(SourceConfig(kind="folder", path=str(images)))


def tar_source(images: Path) -> Source:
    path = images.parent / "images.tar"
    with tarfile.open(path, "w") as tar:
        for number, file in enumerate(sorted(images.rglob("*.*"))):
            data = file.read_bytes()
            member = tarfile.TarInfo(f"{number:03d}{file.suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return open_source(SourceConfig(kind="tars", path=str(path)))


def hf_source(images: Path) -> Source:
    datasets = pytest.importorskip("datasets")
    rows = [{"bytes": file.read_bytes(), "path": None} for file in sorted(images.rglob("*.*"))]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).save_to_disk(images / ".hf")
    return open_source(SourceConfig(kind="hf", path=str(images / ".hf")))


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return shutil.copytree(image_folder, tmp_path / "pictures")


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: getattr(error, "strerror", "memory"))
@pytest.mark.parametrize("make", [folder_source, tar_source, hf_source])
def test_a_passing_failure_costs_nothing(
    make: Callable[[Path], Source],
    error: BaseException,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two failed attempts, then a good one: the batch is the same as without failures."""
    source = make(images)
    dataset = ImageInputs(source, ViewSet(), RULE)
    expected = dataset.load(range(6))
    reads = fail(monkeypatch, type(source), error, times=2)
    found = dataset.load(range(6))
    assert reads[3] == 3
    assert found.reasons == [None] * 6
    assert (found.inputs == expected.inputs).all()
    assert (found.hashes == expected.hashes).all()


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: getattr(error, "strerror", "memory"))
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_a_lasting_failure_ends_the_run_and_marks_no_row(
    error: BaseException,
    workers: int,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the image; no shard holds it, and the next run makes the store of an undisturbed one."""
    run(make_config(images, tmp_path / "clean"))
    config = make_config(images, tmp_path / "s", workers=workers)
    with monkeypatch.context() as context:
        source = folder_source(images)
        fail(context, type(source), error, times=1000)
        with pytest.raises(SourceError) as caught:
            run(config)
    assert source.sample_ids[3] in str(caught.value)
    assert "Traceback" not in str(caught.value)
    run(config)
    assert snapshot(tmp_path / "s") == snapshot(tmp_path / "clean")


def test_memory_that_is_short_while_decoding(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A MemoryError of a decoder is no property of the image."""
    dataset = ImageInputs(folder_source(images), ViewSet(), RULE)
    calls = Counter[str]()
    real = load.decode_image  # type: ignore[attr-defined]

    def decode(data: bytes, **options: Any) -> Any:
        calls["decode"] += 1
        if calls["decode"] == 2:
            raise MemoryError
        return real(data, **options)

    monkeypatch.setattr(load, "decode_image", decode)
    assert dataset.load(range(3)).reasons == [None] * 3
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(SourceError):
        dataset.load(range(3))


def test_an_image_of_its_own_fault_stays_invalid(images: Path) -> None:
    """What another attempt cannot change is a reason of the row: no such file, no permission."""
    source = folder_source(images)
    (images / source.sample_ids[3]).unlink()
    batch = ImageInputs(source, ViewSet(), RULE).load(range(6))
    assert [i for i, reason in enumerate(batch.reasons) if reason] == [3]
    assert load.was_unreadable(str(batch.reasons[3]))


@pytest.mark.slow
def test_repair_tries_unreadable_rows_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--repair makes only the shards of images that can be read now; then the store equals the clean one."""
    run(make_config(images, tmp_path / "clean"))
    gone = [images / name for name in ("cat/02.png", "dog/13.png")]
    data = [path.read_bytes() for path in gone]
    for number, path in enumerate(gone):
        path.unlink()
        path.symlink_to(tmp_path / f"later{number}.png")
    config = make_config(images, tmp_path / "s", max_invalid_share=1.0)
    assert len(run(config).invalid) == 2

    monkeypatch.setattr(
        "featstore.extraction.teachers.build_teacher",
        lambda config, *, dtype, **rest: FormulaTeacher(dtype),
    )
    monkeypatch.setattr("featstore.extraction.teachers.check_teacher", lambda *_, **__: None)
    monkeypatch.setattr("featstore.extraction.dry_run.measure_rates", lambda *_, **__: None)
    repair = make_config(images, tmp_path / "s", max_invalid_share=1.0, repair=True)
    before = snapshot(tmp_path / "s")
    run_phase_one(repair)
    assert snapshot(tmp_path / "s") == before
    (tmp_path / "later0.png").write_bytes(data[0])
    run_phase_one(repair)
    assert [row.sample_id for row in FeatureStore.open(tmp_path / "s").invalid_rows()] == [
        "dog/13.png"
    ]
    (tmp_path / "later1.png").write_bytes(data[1])
    run_phase_one(repair)
    assert snapshot(tmp_path / "s") == snapshot(tmp_path / "clean")


@pytest.mark.parametrize(
    ("reason", "again"),
    [
        ("cannot be read: Input/output error", True),
        ("cannot be decoded: MemoryError: ", True),
        ("cannot be decoded: OSError: out of memory error when reading image file", True),
        ("cannot be decoded: OSError: image file is truncated", False),
        ("empty file (0 bytes)", False),
    ],
)
def test_reasons_that_are_tried_again(reason: str, again: bool) -> None:
    """Also those that older versions wrote."""
    assert load.was_unreadable(reason) == again


def test_other_images_take_nothing_back(images: Path, tmp_path: Path) -> None:
    """A source with another number of images is left to the comparison of the manifests."""
    (images / "cat/02.png").write_bytes(b"")
    run(make_config(images, tmp_path / "s", max_invalid_share=1.0))
    (images / "cat/999.png").write_bytes(picture(5))
    assert unreadable.remove_shards_readable_now(tmp_path / "s", folder_source(images)) == ([], "")


def test_append_tells_a_failing_disk_from_changed_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error is not reported as an image of another content."""
    run(make_config(images, tmp_path / "s"))
    store, source = FeatureStore.open(tmp_path / "s"), folder_source(images)
    with monkeypatch.context() as context:
        fail(context, type(source), FAILURES[0], times=1000)
        with pytest.raises(SourceError):
            find_new(source, store, workers=1)
    (images / source.sample_ids[3]).unlink()
    with pytest.raises(MissingSamples):
        find_new(source, store, workers=1)


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: getattr(error, "strerror", "memory"))
def test_phase_two_retries_too(
    error: BaseException, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passing failure changes no batch of a student; a lasting one is one sentence with the image's id."""
    run(make_config(images, tmp_path / "s"))
    store, source = FeatureStore.open(tmp_path / "s"), folder_source(images)
    samples = join_samples(
        source, store, DataConfig(labelled=["cat/*"], unlabelled=["*"], test=["dog/*"])
    )
    dataset = StudentDataset(samples, rule_of(store, "cls"), size=(8, 8))
    requests = [Request(i, CANONICAL, 0, False) for i in range(len(samples.ids))]
    (expected,) = load_pictures(dataset, [requests], workers=0)
    with monkeypatch.context() as context:
        fail(context, type(source), error, times=2)
        (found,) = load_pictures(dataset, [requests], workers=0)
    assert (found.pixels == expected.pixels).all()
    fail(monkeypatch, type(source), error, times=1000)
    with pytest.raises(SourceError, match=source.sample_ids[3]):
        list(load_pictures(dataset, [requests], workers=0))
