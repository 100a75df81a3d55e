"""Corruptions: pure functions, graded, and equal to their formulas where these are short."""

import itertools
from typing import get_args

import numpy as np
import pytest

from distill.config import CorruptionName
from distill.data import corruptions
from distill.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt

RNG = np.random.default_rng(0)


def picture(height: int = 24, width: int = 32) -> corruptions.Pixels:
    """Soft waves with some grain: edges, flat parts and all channels differ."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 3 + y / 5), np.cos(x / 4), np.sin(y / 2)]
    grain = np.random.default_rng(1).normal(0, 8, (height, width, 3))
    return np.clip(128 + 90 * np.stack(waves, -1) + grain, 0, 255).astype(np.uint8)


def test_the_settings_name_every_corruption() -> None:
    """The command line knows the names without importing what they do."""
    assert set(get_args(CorruptionName)) == set(CORRUPTIONS)
    assert all(len(parameters) == len(SEVERITIES) for _, parameters in CORRUPTIONS.values())


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_a_corruption_is_a_pure_function_and_grows(kind: CorruptionName) -> None:
    """Same seed, same bytes; shape and dtype stay; the input stays; each severity lies farther from the picture."""
    image = picture()
    before = image.copy()
    found = [corrupt(image, kind, severity, seed="a/1") for severity in SEVERITIES]
    np.testing.assert_array_equal(image, before)
    for worse in found:
        assert worse.shape == image.shape
        assert worse.dtype == np.uint8
    np.testing.assert_array_equal(found[2], corrupt(image, kind, 3, seed="a/1"))
    distance = [np.abs(worse.astype(float) - image).mean() for worse in found]
    assert distance[0] > 0
    assert all(small < large for small, large in itertools.pairwise(distance)), distance


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "motion_blur"])
def test_another_id_draws_other_noise(kind: CorruptionName) -> None:
    """What is random depends on the sample's id, and on nothing else."""
    image = picture()
    assert not np.array_equal(corrupt(image, kind, 3, seed="a"), corrupt(image, kind, 3, seed="b"))


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (224, 224)])
def test_any_size(kind: CorruptionName, shape: tuple[int, int]) -> None:
    """A single pixel, a strip, and the usual size."""
    image = picture(*shape)
    assert corrupt(image, kind, 5, seed="a").shape == image.shape


def test_gaussian_noise_has_its_deviation() -> None:
    """On grey, where hardly anything is clipped: 0.08 of the range at severity 2."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    noise = corrupt(grey, "gaussian_noise", 2, seed="a").astype(float) - 128
    assert noise.std() / 255 == pytest.approx(0.08, rel=0.03)
    assert abs(noise.mean()) < 1


def test_shot_noise_has_the_variance_of_a_count() -> None:
    """v / photons, with 50 photons at severity 3."""
    grey = np.full((64, 64, 3), 102, np.uint8)
    noise = corrupt(grey, "shot_noise", 3, seed="a") / 255
    assert noise.mean() == pytest.approx(0.4, rel=0.01)
    assert noise.var() == pytest.approx(0.4 / 50, rel=0.05)


def test_contrast_by_hand() -> None:
    """Severity 3 keeps 0.3 of the distance to the channel's mean."""
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 200
    found = corrupt(image, "contrast", 3, seed="a")
    assert found[0, 0, 0] == 130
    assert found[1, 0, 0] == 70


def test_brightness_by_hand() -> None:
    """The largest channel rises by 0.2 at severity 2, hue and saturation stay; black becomes grey."""
    image = np.array([[[102, 52, 0], [0, 0, 0], [255, 10, 10]]], np.uint8)
    found = corrupt(image, "brightness", 2, seed="a")
    np.testing.assert_array_equal(found[0, 0], [153, 78, 0])
    np.testing.assert_array_equal(found[0, 1], [51, 51, 51])
    np.testing.assert_array_equal(found[0, 2], [255, 10, 10])


def test_pixelate_makes_blocks() -> None:
    """Half of the side at severity 3: blocks of two by two pixels, each of their mean."""
    image = picture(8, 8)
    found = corrupt(image, "pixelate", 3, seed="a").astype(float)
    blocks = found.reshape(4, 2, 4, 2, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    means = image.astype(float).reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(blocks[:, 0, :, 0] - means).max() <= 1


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur"])
def test_a_blur_keeps_flat_parts_and_the_mean(kind: CorruptionName) -> None:
    """Weights add up to one, and the mirrored border adds nothing."""
    flat = np.full((20, 20, 3), 77, np.uint8)
    np.testing.assert_array_equal(corrupt(flat, kind, 5, seed="a"), flat)
    image = picture()
    assert corrupt(image, kind, 3, seed="a").mean() == pytest.approx(image.mean(), rel=0.02)


def test_defocus_spreads_a_point_evenly() -> None:
    """A disc of radius 0.04 x 50 = 2 pixels: symmetric, and nothing beyond three pixels."""
    point = np.zeros((50, 50, 3))
    point[25, 25] = 1
    spread = corruptions.defocus_blur(point, 0.04, RNG)[..., 0]
    assert spread.sum() == pytest.approx(1)
    np.testing.assert_allclose(spread[20:31, 20:31], spread[20:31, 20:31].T, atol=1e-9)
    np.testing.assert_allclose(spread[20:31, 20:31], spread[30:19:-1, 20:31], atol=1e-9)
    y, x = np.mgrid[:50, :50]
    assert np.abs(spread[np.hypot(y - 25, x - 25) > 3.5]).max() < 1e-9
    assert spread[25, 25] == pytest.approx(1 / (np.pi * 4), rel=0.1)
