"""Views: the canonical one is timm's own transform, seeded ones are pure functions, and nothing else is answered."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featstore.errors import ViewMismatch
from featstore.format.views import (
    Box,
    CropMode,
    Interpolation,
    View,
    ViewSet,
    canonical_box,
    cut,
    describe_views,
    make_views,
    seeded_box,
    view_box,
)

LEVELS = 2
"""uint8 levels between one resize of a box and timm's resize-then-crop.

Both sample the image at the same places with the same filter. Pillow resizes in two passes and rounds to 8 bits after
each; which axis comes first depends on the sizes, so that either pass can round the other way. A box that is off by one
pixel gives differences of 20 and more on the noisy pictures used here.
"""

SHAPES = [(100, 100), (97, 61), (61, 97), (500, 375), (300, 31), (31, 300), (8, 8), (640, 479)]
"""(width, height): square, odd, landscape, upright, very long, smaller than any input."""


def noise(width: int, height: int) -> Image.Image:
    """Noise on a gradient: neighbours differ, so that a shift of one pixel shows.

    Values keep away from 0 and 255: between its two passes Pillow cuts off what overshoots.
    """
    generator = np.random.default_rng(width * 1000 + height)
    pixels = generator.integers(50, 130, (height, width, 3))
    pixels += (np.arange(width)[None, :, None] * 80 // width).astype(pixels.dtype)
    return Image.fromarray(pixels.astype(np.uint8))


def timm_transform(
    image: Image.Image, size: tuple[int, int], crop_pct: float, mode: CropMode, how: Interpolation
) -> np.ndarray:
    """What timm's evaluation transform gives, (H, W, 3) uint8."""
    from timm.data import create_transform

    transform = create_transform(
        input_size=(3, *size), crop_pct=crop_pct, crop_mode=mode, interpolation=how, normalize=False
    )
    return transform(image).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize(
    ("side", "crop_pct"),
    [(32, 1.0), (32, 0.875), (224, 0.875), (224, 0.9), (224, 1.0), (518, 1.0), (336, 0.95)],
)
def test_the_canonical_view_is_timms(mode: CropMode, side: int, crop_pct: float) -> None:
    """One resize of the canonical box equals timm's own resize-then-crop for every shape of picture."""
    size = (side, side)
    for width, height in SHAPES if side < 300 else SHAPES[:4]:
        image = noise(width, height)
        box = canonical_box(width, height, size=size, crop_pct=crop_pct, crop_mode=mode)
        ours = np.asarray(cut(image, box, size=size, interpolation="bicubic", mirrored=False))
        theirs = timm_transform(image, size, crop_pct, mode, "bicubic")
        worst = np.abs(ours.astype(int) - theirs.astype(int)).max()
        assert worst <= LEVELS, (width, height)


@pytest.mark.parametrize("how", ["bilinear", "lanczos", "nearest"])
def test_other_interpolations_are_timms(how: Interpolation) -> None:
    """Every resampling that a teacher may state is the one that timm uses under that name."""
    image = noise(97, 61)
    box = canonical_box(97, 61, size=(48, 48), crop_pct=0.875, crop_mode="center")
    ours = np.asarray(cut(image, box, size=(48, 48), interpolation=how, mirrored=False))
    theirs = timm_transform(image, (48, 48), 0.875, "center", how)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= LEVELS


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
def test_inputs_that_are_not_square(size: tuple[int, int]) -> None:
    """A teacher with a rectangular input gets timm's region too.

    timm rounds the longer side here instead of truncating it, and keeps its ratio only to whole pixels: the same rule.
    """
    for width, height in SHAPES[:4]:
        image = noise(width, height)
        box = canonical_box(width, height, size=size, crop_pct=0.9, crop_mode="center")
        ours = np.asarray(cut(image, box, size=size, interpolation="bicubic", mirrored=False))
        theirs = timm_transform(image, size, 0.9, "center", "bicubic")
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= LEVELS, (width, height)


SIDES = st.integers(1, 3000)


@settings(max_examples=200)
@given(SIDES, SIDES, st.integers(1, 600), st.floats(0.05, 1), st.sampled_from(["center", "squash"]))
def test_canonical_boxes_lie_inside(
    width: int, height: int, side: int, crop_pct: float, mode: CropMode
) -> None:
    """For any picture, down to 1 x 3000 pixels, the box is not empty and not outside."""
    inside(
        canonical_box(width, height, size=(side, side), crop_pct=crop_pct, crop_mode=mode),
        width,
        height,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 99), st.booleans())
def test_any_box_can_be_cut(width: int, height: int, number: int, mirrored: bool) -> None:
    """Pillow accepts every box that we make, of pictures of any shape."""
    image = noise(width, height)
    size = (16, 16)
    for box in (
        canonical_box(width, height, size=size, crop_pct=0.875, crop_mode="center"),
        seeded(number, width=width, height=height, scale=(0.01, 1.0)),
    ):
        view = cut(image, box, size=size, interpolation="bicubic", mirrored=mirrored)
        assert view.size == (16, 16)


def inside(box: Box, width: int, height: int) -> None:
    left, upper, right, lower = box
    assert 0 <= left < right <= width, box
    assert 0 <= upper < lower <= height, box


def seeded(
    number: int,
    *,
    width: int = 400,
    height: int = 300,
    seed: int = 0,
    sample_id: str = "cats/0017.jpg",
    scale: tuple[float, float] = (0.35, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A seeded box with everything given a value."""
    return seeded_box(
        width, height, seed=seed, sample_id=sample_id, number=number, scale=scale, ratio=ratio
    )


def test_seeded_boxes_are_pure_functions() -> None:
    """Golden numbers: the formula of docs/format.md may never change, or stored crops could not be replayed."""
    golden = {
        (0, "cats/0017.jpg", 0): (
            53.32322407904032,
            36.91168253433492,
            360.645516644187,
            293.53820265156776,
        ),
        (0, "cats/0017.jpg", 1): (85.06376065351405, 0.0, 380.7910962202044, 300.0),
        (7, "cats/0017.jpg", 0): (61.509652555213044, 0.0, 350.08792630153846, 300.0),
        (0, "Mädchen/1.png", 0): (
            55.69724840032559,
            66.89089487823665,
            346.5265299502242,
            292.1271360218931,
        ),
    }
    for (seed, sample_id, number), expected in golden.items():
        assert seeded(number, seed=seed, sample_id=sample_id) == pytest.approx(expected, abs=1e-9)


def test_seeded_boxes_follow_the_docs() -> None:
    """The formula of docs/format.md, written out again."""
    width, height = 400, 300
    for number in range(20):
        digest = hashlib.sha256(f"featstore-view-1|3|{number}|a/b.jpg".encode()).digest()
        a, b, x, y = (
            (int.from_bytes(digest[8 * i : 8 * i + 8], "little") >> 11) / 2**53 for i in range(4)
        )
        area = width * height * (0.35 + a * (1.0 - 0.35))
        ratio = math.exp(math.log(3 / 4) + b * (math.log(4 / 3) - math.log(3 / 4)))
        w = min(width, max(1, math.sqrt(area * ratio)))
        h = min(height, max(1, math.sqrt(area / ratio)))
        left, upper = x * (width - w), y * (height - h)
        found = seeded(number, seed=3, sample_id="a/b.jpg")
        assert found == pytest.approx((left, upper, left + w, upper + h), abs=1e-9)


def test_every_part_of_the_key_counts() -> None:
    """Another number, sample or seed gives another crop; ids and numbers cannot be confused with one another."""
    boxes = [
        seeded(number, seed=seed, sample_id=sample_id)
        for number in (0, 1, 11)
        for seed in (0, 1, 11)
        for sample_id in ("a", "b", "1|a", "|a")
    ]
    assert len(set(boxes)) == len(boxes)


@settings(max_examples=200)
@given(SIDES, SIDES, st.integers(0, 10**6), st.integers(0, 10**6), st.text(max_size=20))
def test_seeded_boxes_lie_inside(
    width: int, height: int, number: int, seed: int, sample_id: str
) -> None:
    """For any picture and any id."""
    inside(
        seeded(number, width=width, height=height, seed=seed, sample_id=sample_id), width, height
    )


def test_seeded_boxes_fill_their_ranges() -> None:
    """Where no side is cut off, area share and ratio lie in the ranges and reach both ends; positions spread."""
    scale, ratio = (0.1, 0.4), (0.5, 2.0)
    boxes = [seeded(n, width=1000, height=1000, scale=scale, ratio=ratio) for n in range(500)]
    shares, ratios, lefts = [], [], []
    for left, upper, right, lower in boxes:
        w, h = right - left, lower - upper
        shares.append(w * h / 1e6)
        ratios.append(w / h)
        lefts.append(left / (1000 - w))
    assert scale[0] <= min(shares) < 0.105
    assert 0.395 < max(shares) <= scale[1]
    assert ratio[0] * (1 - 1e-9) <= min(ratios) < 0.51
    assert 1.96 < max(ratios) <= ratio[1] * (1 + 1e-9)
    # The mean of 500 uniform numbers has a standard deviation of 0.013.
    assert abs(np.mean(shares) - 0.25) < 0.02
    assert abs(np.mean(np.log(ratios))) < 0.08
    assert abs(np.mean(lefts) - 0.5) < 0.05


def test_mirrored_is_flipped() -> None:
    """A mirrored view is its plain view flipped left to right, bit by bit."""
    image = noise(97, 61)
    box = seeded(0, width=97, height=61)
    plain = np.asarray(cut(image, box, size=(20, 24), interpolation="bicubic", mirrored=False))
    mirrored = np.asarray(cut(image, box, size=(20, 24), interpolation="bicubic", mirrored=True))
    assert plain.shape == (20, 24, 3)
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])


def test_the_same_region_at_another_size() -> None:
    """A student with a smaller input sees the same region: its view is the teacher's one, shrunk.

    Compared after both are averaged down to 8 x 8; 6 levels cover the different filters on noise.
    """
    image = noise(400, 300)
    view_set = ViewSet(views=make_views(canonical=True, seeded=2, mirrored=False))
    for view in view_set.views:
        box = view_box(
            view,
            view_set,
            sample_id="a",
            width=400,
            height=300,
            size=(224, 224),
            crop_pct=0.9,
            crop_mode="center",
        )
        means = []
        for side in (224, 96):
            seen = cut(image, box, size=(side, side), interpolation="bicubic", mirrored=False)
            blocks = np.asarray(seen, dtype=float).reshape(8, side // 8, 8, side // 8, 3)
            means.append(blocks.mean(axis=(1, 3)))
        assert np.abs(means[0] - means[1]).max() < 6


def test_which_views_there_are() -> None:
    """Order of the view axis: canonical, then the crops; with mirrors each pair side by side."""
    both = make_views(canonical=True, seeded=2, mirrored=True)
    assert describe_views(both) == (
        "canonical; canonical, mirrored; seeded 0; seeded 0, mirrored; seeded 1; seeded 1, mirrored"
    )
    assert make_views(canonical=False, seeded=1, mirrored=False) == (View(kind="seeded"),)


def test_index_answers_or_refuses() -> None:
    """Asking for a view that is not stored is an error that lists what is, and what to do."""
    plain = ViewSet(views=make_views(canonical=True, seeded=2, mirrored=False))
    assert plain.index(kind="canonical") == [0]
    assert plain.index(kind="seeded") == [1, 2]
    assert plain.index(mirrored=False) == [0, 1, 2]
    with pytest.raises(ViewMismatch, match=r"\b0\b.*\b1\b"):
        plain.index(mirrored=True)
    with pytest.raises(ViewMismatch, match=r"--views.mirrored true"):
        plain.index(kind="seeded", mirrored=True)
    canonical = ViewSet()
    with pytest.raises(ViewMismatch, match=r"--views.seeded K"):
        canonical.index(kind="seeded")
    mirrored = ViewSet(views=make_views(canonical=True, seeded=1, mirrored=True))
    assert mirrored.index(kind="seeded", mirrored=True) == [3]
    assert mirrored.index() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.4)},
        {"scale": (0.5, 1.5)},
        {"ratio": (0.0, 1.0)},
        {"views": ()},
    ],
    ids=str,
)
def test_impossible_view_sets_are_refused(bad: dict) -> None:
    """Ranges out of order, areas above the image, no view at all."""
    with pytest.raises(ValueError, match=r"must (satisfy|be)"):
        ViewSet(**bad)
