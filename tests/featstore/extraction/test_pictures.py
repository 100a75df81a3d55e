"""Copies of the images in the store: what they hold, which rows have none, and how a store is passed on without."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featstore import FeatureStore
from featstore.errors import ConfigError, ManifestMismatch
from featstore.extraction.config import StoreConfig
from featstore.format.pictures import PICTURES, PictureFormat, full_size
from featstore.sharing.part import Part
from featstore.sharing.push import push
from tests.featstore.formula import make_config, run
from tests.featstore.stores import snapshot
from tests.images import ORIENTATION, encode, gradient


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures of odd sizes, one of them turned by EXIF, and a file that is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (width, height) in enumerate([(61, 97), (97, 61), (12, 10), (300, 20), (64, 64)]):
        (folder / f"{number}.png").write_bytes(encode(gradient(width, height)))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (folder / "turned.jpg").write_bytes(encode(gradient(80, 60), "JPEG", exif=exif))
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def extract(photos: Path, path: Path, *, workers: int = 0, **options: Any) -> FeatureStore:
    """Extract with copies of 32 px."""
    given = {"fields": ["cls", "grid2"], "shard_rows": 4, "pictures": 32, **options}
    run(make_config(photos, path, store=StoreConfig(path=str(path), **given), workers=workers))
    return FeatureStore.open(path)


def file_of(store: FeatureStore, name: str) -> bytes:
    """The copy of one image."""
    return store.gather_ragged(PICTURES, store.rows_of([name])).values.tobytes()


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
@pytest.mark.parametrize("quality", [0, 90])
def test_copies_are_small_upright_pictures(
    photos: Path, tmp_path: Path, container: str, quality: int
) -> None:
    """Stock Pillow opens a copy; its size follows the rule, and it names the size of the upright original."""
    store = extract(photos, tmp_path / "s", container=container, picture_quality=quality)
    expected = {
        "0.png": ((61, 97), (32, 51)),
        "1.png": ((97, 61), (51, 32)),
        "2.png": ((12, 10), (12, 10)),
        "3.png": ((300, 20), (256, 17)),
        "turned.jpg": ((60, 80), (32, 43)),
    }
    for name, (full, small) in expected.items():
        data = file_of(store, name)
        picture = Image.open(io.BytesIO(data))
        assert (full_size(data), picture.size, picture.mode) == (full, small, "RGB"), name
        assert picture.format == ("JPEG" if quality else "PPM")
        assert not picture.getexif()
    original = Image.open(photos / "2.png").convert("RGB")
    copy = Image.open(io.BytesIO(file_of(store, "2.png")))
    difference = np.abs(np.asarray(copy, int) - np.asarray(original, int))
    assert difference.max() <= (40 if quality else 0)


def test_an_unusable_image_has_no_copy(photos: Path, tmp_path: Path) -> None:
    """Its row is invalid as ever, and the reader refuses it by name."""
    store = extract(photos, tmp_path / "s")
    assert [item.sample_id for item in store.invalid_rows()] == ["bad.png"]
    assert store.valid.sum() == 6


def test_processes_change_no_byte(photos: Path, tmp_path: Path) -> None:
    """Copies made in line and by two loading processes are the same bytes."""
    extract(photos, tmp_path / "a")
    extract(photos, tmp_path / "b", workers=2)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


@pytest.mark.parametrize("other", [{"pictures": 0}, {"pictures": 40}, {"picture_quality": 50}])
def test_another_form_of_copies_is_refused(
    photos: Path, tmp_path: Path, other: dict[str, int]
) -> None:
    """Rows with other copies than the store's would be a mixture."""
    extract(photos, tmp_path / "s")
    with pytest.raises(ManifestMismatch, match=PICTURES):
        extract(photos, tmp_path / "s", **other)


def test_a_store_is_pushed_without_its_copies(photos: Path, tmp_path: Path) -> None:
    """What arrives is a whole store of the other fields, row by row the same."""
    store = extract(photos, tmp_path / "s")
    part = Part().without([PICTURES], store.path)
    push(store.path, str(tmp_path / "there"), part=part)
    there = FeatureStore.open(tmp_path / "there")
    assert list(there) == ["cls", "grid2"]
    rows = np.flatnonzero(store.valid)
    np.testing.assert_array_equal(there.gather("cls", rows), store.gather("cls", rows))
    for wrong in (["clss"], ["cls", "grid2", PICTURES]):
        with pytest.raises(ConfigError, match="cls"):
            Part().without(wrong, store.path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"full-size 3x4",
        b"full-size 0x4\n",
        encode(gradient(), "JPEG", comment="full-size -3x4 "),
    ],
)
def test_other_files_name_no_original(data: bytes) -> None:
    """Only a whole comment with two positive numbers counts."""
    assert full_size(data) is None


def test_room_holds_the_worst_picture() -> None:
    """Noise at the longest shape and the best quality stays within what a row reserves."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16 * 8, 3), dtype=np.uint8)
    for quality in (0, 100):
        form = PictureFormat(16, quality)
        assert len(form.encode(Image.fromarray(noise))) <= form.field.encoding.most_items  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "wrong", [{"pictures": -1}, {"picture_quality": 101}, {"pictures": 9, "fields": [PICTURES]}]
)
def test_wrong_settings_name_themselves(wrong: dict[str, Any]) -> None:
    """A setting out of range is refused before anything is loaded."""
    with pytest.raises(ConfigError, match=r"--store\."):
        StoreConfig(**wrong)
