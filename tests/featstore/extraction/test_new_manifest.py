"""Stores of every type, codec and container come out of phase one, and go on where they were."""

import io
import tarfile
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from featstore import FeatureStore
from featstore.containers import make_backend
from featstore.errors import ConfigError, ManifestMismatch, TeacherError
from featstore.extraction import shards
from featstore.extraction.config import StoreConfig
from featstore.extraction.new_manifest import design_store, resolve_precision
from featstore.extraction.teachers import Teacher
from featstore.format.ledger import remove_entries
from featstore.format.manifest_records import Int8Encoding
from featstore.planning.costs import Rates
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests.featstore.formula import FormulaTeacher, make_config, run
from tests.featstore.stores import snapshot
from tests.images import picture


def config_of(images: Path, path: Path, **store: Any) -> Any:
    """Settings of a run with other settings of the store."""
    fields = ["cls", "grid2"]
    return make_config(
        images, path, store=StoreConfig(path=str(path), fields=fields, shard_rows=4, **store)
    )


@pytest.fixture(scope="module")
def exact(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Features as float32."""
    path = tmp_path_factory.mktemp("exact") / "s"
    run(config_of(image_folder, path, dtype="float32"))
    store = FeatureStore.open(path)
    return {name: store.gather(name, range(26)) for name in ("cls", "grid2")}


@pytest.mark.parametrize("codec", ["raw", "zstd", "bitshuffle"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_types_and_codecs(
    image_folder: Path, tmp_path: Path, exact: dict[str, Any], dtype: Any, codec: Any
) -> None:
    """A narrower type is the float32 features rounded once; a codec changes nothing."""
    run(config_of(image_folder, tmp_path / "s", dtype=dtype, codec=codec))
    store = FeatureStore.open(tmp_path / "s")
    for name, values in exact.items():
        expected = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        np.testing.assert_array_equal(store.gather(name, range(26)), expected, strict=True)


def test_int8_keeps_its_scales_when_it_goes_on(
    image_folder: Path, tmp_path: Path, exact: dict[str, Any]
) -> None:
    """Scales come from a sample once; a run that goes on takes those of the store, and gives the same bytes."""
    config = config_of(image_folder, tmp_path / "s", dtype="int8", calibration_rows=10)
    run(config)
    store = FeatureStore.open(tmp_path / "s")
    encoding = store.manifest.fields["cls"].encoding
    assert isinstance(encoding, Int8Encoding)
    assert encoding.sample_rows == 10
    for name, values in exact.items():
        found = store.gather(name, range(26))
        error = np.linalg.norm(found - values, axis=-1) / np.linalg.norm(values, axis=-1)
        assert error.mean() < 0.02
    before = snapshot(tmp_path / "s")
    remove_entries(tmp_path / "s", [1, 3])
    other = FormulaTeacher("float32", lambda images, cls: cls.mul_(1 + 1e-7))
    made = design_store(config, source=open_source(config.source), teacher=other)  # type: ignore[arg-type]
    assert made.manifest.fields == store.manifest.fields
    assert not made.artefacts
    run(config)
    assert snapshot(tmp_path / "s") == before


def test_int8_needs_a_usable_sample(image_folder: Path, tmp_path: Path) -> None:
    """Where every feature of the sample is NaN there is no scale; nothing is written."""
    config = config_of(image_folder, tmp_path / "s", dtype="int8")
    broken = FormulaTeacher("float32", lambda images, cls: cls.fill_(float("nan")))
    with pytest.raises(TeacherError, match=r"\b26\b"):
        run(config, broken)
    assert not (tmp_path / "s").exists()


def test_invalid_rows_of_int8_are_zeros(image_folder: Path, tmp_path: Path) -> None:
    """A row without a feature holds zeros in every column, whatever zero means as a code."""
    seen = []

    def spoil(images: Any, cls: Any) -> None:
        seen.append(1)
        if len(seen) > 26:  # the calibration sample, 13 batches of 2 views, is sound
            cls[0] = float("nan")

    config = config_of(image_folder, tmp_path / "s", dtype="int8")
    summary = run(config, FormulaTeacher("float32", spoil))
    assert summary.invalid
    store = FeatureStore.open(tmp_path / "s")
    backend = make_backend(store.path, store.manifest)
    for item in summary.invalid:
        shard = item.row // 4
        for column in ("fields/cls/codes", "fields/cls/scale", "fields/grid2/codes"):
            values = backend.read_shard(shard, column, store.entry(shard).objects)
            assert not values[item.row % 4].any()


def test_settings_that_do_not_go_together() -> None:
    """Tars have no codec of their own."""
    with pytest.raises(ConfigError, match=r"--store\.codec zstd.*--store\.container zarr"):
        StoreConfig(container="webdataset", codec="zstd")


def test_precision_of_a_store_without_that_teacher(image_folder: Path, tmp_path: Path) -> None:
    """auto asks the store first, and the hardware where the store is not there yet."""

    config = config_of(image_folder, tmp_path / "s")
    assert resolve_precision(config, torch.device("cpu")) == "fp32"


def test_tars_mirror_the_tars_of_the_images(tmp_path: Path) -> None:
    """With the webdataset container, shard and keys are those of the image tars; rows equal those of the Zarr store."""
    folder = write_tars(tmp_path / "tars")
    stores = {}
    for container in ("zarr", "webdataset"):
        path = tmp_path / container
        config = make_config(
            folder,
            path,
            source=SourceConfig(kind="tars", path=str(folder / "**/*.tar")),
            store=StoreConfig(
                path=str(path),
                fields=["cls", "grid2"],
                shard_rows=4,
                container=container,  # type: ignore[arg-type]
            ),
        )
        run(config)
        stores[container] = FeatureStore.open(path)
    tars, arrays = stores["webdataset"], stores["zarr"]
    assert (tars.path / "shards" / "b" / "2.tar").exists()
    assert tars.manifest.work.shard_sizes == (5, 3)
    assert tars.sample_ids == arrays.sample_ids
    assert tars.fingerprint == arrays.fingerprint
    for name in ("cls", "grid2"):
        rows = [7, 0, 5, 5]
        np.testing.assert_array_equal(tars.gather(name, rows), arrays.gather(name, rows))


def write_tars(folder: Path) -> Path:
    """Two tars, of five and of three pictures."""
    for name, count in (("a/1.tar", 5), ("b/2.tar", 3)):
        path = folder / name
        path.parent.mkdir(parents=True)
        with tarfile.open(path, "w") as tar:
            for number in range(count):
                data = picture(number, "PNG")
                item = tarfile.TarInfo(f"{number:04d}.png")
                item.size = len(data)
                tar.addfile(item, io.BytesIO(data))
    return folder


def rows_of_a_shard(
    images: Path, path: Path, *, rate: float, fill: bool = False, **store: Any
) -> int:
    """Rows of a shard of a new store whose teacher was measured; with ``fill``, the store is made."""
    config = make_config(images, path, store=StoreConfig(path=str(path), fields=["cls"], **store))
    source = open_source(config.source)
    made = design_store(
        config,
        source=source,
        teacher=cast(Teacher, FormulaTeacher("float16")),
        measure=lambda views: Rates(teacher=rate, decode=10 * rate, disk=1e9),
    )
    if fill:
        shards.run(
            config,
            manifest=made.manifest,
            source=source,
            teacher=cast(Teacher, FormulaTeacher("float16")),
            accelerator=Accelerator(cpu=True),
        )
    return made.manifest.work.shard_rows


@pytest.mark.parametrize(
    ("rate", "shard_s", "expected"),
    [
        (0.4, 60, 16),
        (0.01, 60, 2),
        (1.0, 60, 32),
        (1000.0, 60, 4096),
        (0.4, 0, 4096),
        (0.4, 600, 128),
    ],
)
def test_shards_are_sized_by_time(
    image_folder: Path, tmp_path: Path, rate: float, shard_s: int, expected: int
) -> None:
    """A power of two of rows that take at most so long, at least one batch; 0 leaves time out."""
    assert rows_of_a_shard(image_folder, tmp_path / "s", rate=rate, shard_s=shard_s) == expected


def test_a_store_keeps_the_shards_that_it_was_made_with(image_folder: Path, tmp_path: Path) -> None:
    """Another speed on resume changes no cut, so the bytes stay; limits that the cut breaks are refused."""
    store = tmp_path / "s"
    assert rows_of_a_shard(image_folder, store, rate=0.2, fill=True) == 8
    straight = snapshot(store)
    remove_entries(store, [1])
    assert rows_of_a_shard(image_folder, store, rate=500.0, fill=True) == 8
    assert snapshot(store) == straight
    remove_entries(store, [1])
    with pytest.raises(ManifestMismatch, match=r"work\.shard_rows"):
        rows_of_a_shard(image_folder, store, rate=500.0, fill=True, shard_rows=4)
