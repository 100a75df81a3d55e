"""Changed pictures: pure functions of picture, options and bits."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader, Dataset

from distill.config import AugmentConfig, PhotometricConfig
from distill.data.augment import (
    GRAY,
    OPERATIONS,
    Picture,
    _moved,
    _operations,
    _seeded,
    photometric,
    strongly,
)
from featstore.errors import ConfigError

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
STRONG = AugmentConfig(flip=True)
OFF = AugmentConfig(ops=0, cutout=0, translate=0)
ALL = PhotometricConfig(jitter=0.4, hue=0.1, grayscale=0.5, blur=0.5)


def weakly(pixels: Picture, config: AugmentConfig, bits: int) -> Picture:
    """The first part of ``strongly``: shift and mirror."""
    with _seeded(bits):
        return _moved(pixels, config)


def changed(bits: int) -> bytes:
    """All three of one picture."""
    parts = (photometric(PICTURE, ALL, bits), weakly(PICTURE, STRONG, bits))
    return b"".join(item.tobytes() for item in (*parts, strongly(PICTURE, STRONG, bits)))


class Changed(Dataset[bytes]):
    """What other processes are asked for."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, bits: int) -> bytes:
        return changed(bits)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [changed(bits) for bits in range(40)]


def test_the_same_in_any_order_and_process(pictures: list[bytes]) -> None:
    """Backwards, after other draws, and in the processes of a loader, which seed their generators otherwise."""
    random.seed(123)
    np.random.seed(123)
    torch.manual_seed(123)
    assert [changed(bits) for bits in reversed(range(40))] == pictures[::-1]
    loader = DataLoader(Changed(), batch_size=None, num_workers=2)
    assert list(loader) == pictures
    assert len(set(pictures)) == len(pictures)


def test_global_generators_are_left_alone() -> None:
    """Python's, numpy's and torch's: a resumed run must find them where they were."""
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # type: ignore[index]
    changed(2**64 - 1)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tobytes() == before[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("size", [(24, 20), (1, 1), (7, 64)])
def test_shape_and_type_stay_and_the_input_is_not_written(size: tuple[int, int]) -> None:
    """Also for pictures of one pixel, and ones that may not be written."""
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels.setflags(write=False)
    for bits in range(30):
        for seen in (
            photometric(pixels, ALL, bits),
            strongly(pixels, STRONG, bits),
            weakly(pixels, STRONG, bits),
        ):
            assert seen.shape == pixels.shape
            assert seen.dtype == np.uint8


@pytest.mark.parametrize(
    "option", [{"jitter": 0.4}, {"hue": 0.1}, {"grayscale": 1.0}, {"blur": 1.0}], ids=str
)
def test_every_photometric_option_changes_values_and_moves_nothing(option: dict[str, Any]) -> None:
    """A picture of one colour stays one; a mirrored picture gives the mirrored result."""
    config = PhotometricConfig(**option)
    seen = [photometric(PICTURE, config, bits) for bits in range(8)]
    # A blur of a tenth of a pixel changes nothing.
    assert sum(bool((item != PICTURE).any()) for item in seen) >= 6
    if option.keys() != {"grayscale"}:
        assert len({item.tobytes() for item in seen}) >= 6
    plain = np.full((24, 20, 3), (200, 100, 50), np.uint8)
    mirrored = np.ascontiguousarray(PICTURE[:, ::-1])
    for bits in range(8):
        assert np.ptp(photometric(plain, config, bits), axis=(0, 1)).max() == 0
        back = photometric(mirrored, config, bits)[:, ::-1]
        assert np.abs(back.astype(int) - seen[bits]).max() <= 1


def test_photometric_off_is_the_very_same_picture() -> None:
    """Nothing is drawn and nothing is copied."""
    assert photometric(PICTURE, PhotometricConfig(), 7) is PICTURE


def test_jitter_by_hand() -> None:
    """Three factors, uniform in 1 +- jitter, from numpy's generator of the bits; other changes do not move them."""
    factors = np.random.default_rng(5).uniform(-1, 1, 3)
    image = Image.fromarray(PICTURE)
    image = ImageEnhance.Brightness(image).enhance(1 + 0.4 * factors[0])
    image = ImageEnhance.Contrast(image).enhance(1 + 0.4 * factors[1])
    image = ImageEnhance.Color(image).enhance(1 + 0.4 * factors[2])
    config = PhotometricConfig(jitter=0.4)
    assert (photometric(PICTURE, config, 5) == np.asarray(image)).all()
    gray = photometric(PICTURE, replace(config, grayscale=1.0), 5)
    assert (gray[..., 0] == np.asarray(image.convert("L"))).all()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_something(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself, on a picture that does not use the whole range of values."""
    monkeypatch.setattr("distill.data.augment.OPERATIONS", (name,))
    pixels = (PICTURE // 2 + 40).astype(np.uint8)
    _operations.cache_clear()
    config = replace(OFF, ops=1)
    try:
        seen = [strongly(pixels, config, bits) for bits in range(12)]
    finally:
        _operations.cache_clear()
    assert all(item.shape == pixels.shape for item in seen)
    assert sum(bool((item != pixels).any()) for item in seen) >= 6


def test_magnitude_bounds_the_change() -> None:
    """At a small magnitude a rotation hardly moves anything; the number of operations counts."""
    step = np.zeros((24, 20, 3), np.uint8)
    step[:, 10:] = 200

    def distance(config: AugmentConfig) -> float:
        seen = [strongly(step, config, bits).astype(float) for bits in range(60)]
        return float(np.mean([np.abs(item - step).mean() for item in seen]))

    weak = replace(OFF, ops=2, magnitude=1.0)
    assert distance(weak) < distance(replace(OFF, ops=2, magnitude=10.0))
    assert distance(replace(OFF, ops=1)) < distance(replace(OFF, ops=3))
    assert distance(OFF) == 0


def test_a_shift_reflects_at_the_border() -> None:
    """Rows and columns come from within the picture, at most the asked part away."""
    pixels = np.arange(8, dtype=np.uint8)[None, :, None].repeat(3, 2).repeat(8, 0)
    config = replace(OFF, translate=0.25)
    seen = {tuple(weakly(pixels, config, bits)[0, :, 0]) for bits in range(60)}
    assert seen == {
        (0, 1, 2, 3, 4, 5, 6, 7),
        (1, 2, 3, 4, 5, 6, 7, 6),
        (2, 3, 4, 5, 6, 7, 6, 5),
        (1, 0, 1, 2, 3, 4, 5, 6),
        (2, 1, 0, 1, 2, 3, 4, 5),
    }


def test_a_flip_mirrors_half_of_the_pictures() -> None:
    """And nothing else."""
    seen = [weakly(PICTURE, replace(OFF, flip=True), bits) for bits in range(200)]
    flips = sum((item == PICTURE[:, ::-1]).all() for item in seen)
    same = sum((item == PICTURE).all() for item in seen)
    assert flips + same == 200
    assert 70 <= flips <= 130


def test_cutout_paints_one_square() -> None:
    """Gray, no larger than asked, and somewhere else each time."""
    black = np.zeros((32, 32, 3), np.uint8)
    areas = []
    for bits in range(60):
        painted = strongly(black, replace(OFF, cutout=0.5), bits)[..., 0]
        assert set(np.unique(painted)) <= {0, GRAY}
        rows, columns = painted.any(1), painted.any(0)
        assert painted.astype(bool).sum() == rows.sum() * columns.sum()
        assert max(rows.sum(), columns.sum()) <= 17
        areas.append(int(rows.sum() * columns.sum()))
    assert max(areas) > 100
    assert len(set(areas)) > 20


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        (PhotometricConfig, {"jitter": 1.5}, r"--data.jitter 1.5.*\b0\b.*\b1\b"),
        (PhotometricConfig, {"hue": 0.6}, r"--data.hue 0.6.*\b0\b.*0.5"),
        (PhotometricConfig, {"blur": -1.0}, "--data.blur -1.0"),
        (AugmentConfig, {"ops": -1}, "--data.strong.ops -1"),
        (AugmentConfig, {"magnitude": 11.0}, "--data.strong.magnitude 11.0"),
        (AugmentConfig, {"cutout": 2.0}, "--data.strong.cutout 2.0"),
        (AugmentConfig, {"translate": 0.7}, "--data.strong.translate 0.7"),
    ],
)
def test_options_are_checked(kind: type, option: dict[str, Any], message: str) -> None:
    """By name, as on the command line."""
    with pytest.raises(ConfigError, match=message):
        kind(**option)
