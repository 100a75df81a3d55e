"""Decoding: the right colours for every kind of file, and one kind of error for everything else."""

import io
import struct
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featstore.errors import DecodeError
from featstore.sources.decode import decode_image, to_rgb
from tests.conftest import ROOT
from tests.images import ORIENTATION, chunk, encode, gradient, png, png16

JPEG_TOLERANCE = 6
"""Levels. Quality 95 on a smooth 24 x 16 picture, no chroma subsampling: 3 with libjpeg-turbo."""

Pixels = npt.NDArray[np.uint8]


def decoded(data: bytes) -> Pixels:
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def smooth() -> Pixels:
    """A gradient that JPEG keeps closely: no step in any channel."""
    pixels = gradient()
    pixels[..., 2] = 90
    return pixels


def worst(found: Pixels, expected: Pixels) -> int:
    assert found.shape == expected.shape
    return int(np.abs(found.astype(int) - expected.astype(int)).max())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_jpeg_colours(options: dict[str, bool]) -> None:
    """Baseline and progressive JPEG give the picture back within the tolerance."""
    data = encode(smooth(), "JPEG", quality=95, subsampling=0, **options)
    assert worst(decoded(data), smooth()) <= JPEG_TOLERANCE


def test_jpeg_grey() -> None:
    """A grey JPEG has three equal channels."""
    grey = gradient()[..., 0]
    found = decoded(encode(grey, "JPEG", quality=95))
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == found[..., 2]).all()
    assert worst(found[..., 0], grey) <= JPEG_TOLERANCE


def test_jpeg_cmyk() -> None:
    """CMYK is converted, not inverted: full cyan is (0, 255, 255), no ink is white, black is black.

    Tolerance 3 levels: flat 16 x 16 areas at quality 95 only suffer rounding.
    """
    inks = {(255, 0, 0, 0): (0, 255, 255), (0, 0, 0, 0): (255, 255, 255), (0, 0, 0, 255): (0, 0, 0)}
    for ink, colour in inks.items():
        data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
        assert Image.open(io.BytesIO(data)).mode == "CMYK"
        assert worst(decoded(data)[8, 8], np.array(colour, dtype=np.uint8)) <= 3


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "ICO"])
def test_lossless_formats(kind: str) -> None:
    """Lossless formats give the very same pixels."""
    pixels = gradient(32, 32)
    assert (decoded(encode(pixels, kind)) == pixels).all()


def test_webp_and_jpeg2000_and_avif() -> None:
    """WebP and JPEG 2000 in their lossless modes are exact; AVIF at quality 100 within 5 levels."""
    pixels = smooth()
    assert (decoded(encode(pixels, "WEBP", lossless=True)) == pixels).all()
    assert (decoded(encode(pixels, "JPEG2000")) == pixels).all()
    assert worst(decoded(encode(pixels, "AVIF", quality=100, subsampling="4:4:4")), pixels) <= 5


def test_mpo() -> None:
    """Of the two pictures in a phone's MPO file the first counts."""
    second = Image.new("RGB", (24, 16), "red")
    data = encode(smooth(), "MPO", save_all=True, append_images=[second], quality=95, subsampling=0)
    assert worst(decoded(data), smooth()) <= JPEG_TOLERANCE


def test_gif_first_frame() -> None:
    """Of an animation the first frame counts."""
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "green")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decoded(data) == (255, 0, 0)).all()


def test_png_palette() -> None:
    """Palette indices become their colours."""
    image = Image.fromarray(gradient()).quantize(16)
    assert (decoded(encode(image)) == np.asarray(image.convert("RGB"))).all()


def test_png_palette_with_transparency() -> None:
    """A transparent palette entry shows white, a half transparent one is blended with white."""
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    found = decoded(encode(image, transparency=bytes([0, 128, 255])))
    assert worst(found, np.array([[[255, 255, 255], [127, 255, 127], [0, 0, 255]]], np.uint8)) <= 1


def test_alpha_over_white() -> None:
    """RGBA and LA are laid over white: the hidden colour under alpha 0 never shows."""
    rgba = np.array([[[9, 9, 9, 0], [10, 20, 30, 255], [0, 0, 0, 128]]], dtype=np.uint8)
    expected = np.array([[[255] * 3, [10, 20, 30], [127] * 3]], dtype=np.uint8)
    assert worst(decoded(encode(rgba)), expected) <= 1
    grey_alpha = Image.merge("LA", [Image.new("L", (2, 2), 5), Image.new("L", (2, 2), 0)])
    assert (decoded(encode(grey_alpha)) == 255).all()


def test_transparent_colour_of_grey_and_rgb_png() -> None:
    """PNG's single transparent colour shows white for 8-bit grey, 16-bit grey and RGB."""
    grey = np.array([[7, 100]], dtype=np.uint8)
    assert decoded(encode(grey, transparency=7))[0, :, 0].tolist() == [255, 100]
    deep = np.array([[1000, 25700]], dtype=np.uint16)
    data = png16(deep, extra=chunk(b"tRNS", struct.pack(">H", 1000)))
    assert decoded(data)[0, :, 0].tolist() == [255, 100]
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    assert decoded(encode(rgb, transparency=(1, 2, 3)))[0].tolist() == [[255] * 3, [4, 5, 6]]


def test_png_16_bit_grey() -> None:
    """16-bit grey is value / 257, rounded: exact, and white stays white."""
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    found = decoded(png16(values))
    assert (found == expected[..., None]).all()


def test_png_16_bit_rgb() -> None:
    """16-bit RGB is within one level of value / 257 (Pillow keeps the high byte)."""
    values = (gradient().astype(np.uint16) * 257 + 100).clip(0, 65535).astype(np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    assert worst(decoded(png16(values)), expected) <= 1


def test_png_1_bit() -> None:
    """1-bit pictures are black and white."""
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    assert decoded(encode(bits))[..., 0].tolist() == [[0, 255], [255, 0]]


def test_float_tiff_is_refused() -> None:
    """A picture whose numbers have no 8-bit meaning is refused with that reason."""
    data = encode(Image.new("F", (4, 4), 0.5), "TIFF")
    with pytest.raises(DecodeError, match="floating-point"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, kind: str) -> None:
    """All eight EXIF orientations equal the upright picture."""
    # How the stored picture lies for each orientation, from the EXIF standard: (row 0, column 0).
    upright = smooth()
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    options: dict[str, Any] = {  # type: ignore[assignment]
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 95, "subsampling": 0},
    }.get(kind, {})
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    found = decoded(encode(np.ascontiguousarray(turned), kind, exif=exif, **options))
    assert worst(found, upright) <= (JPEG_TOLERANCE if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff"],
)
def test_damaged_exif_does_not_cost_the_picture(exif: bytes) -> None:
    """A good picture with a broken EXIF block is decoded as it lies."""
    data = encode(smooth(), "JPEG", quality=95, subsampling=0, exif=exif)
    assert worst(decoded(data), smooth()) <= JPEG_TOLERANCE


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("TIFF", {}),
        ("BMP", {}),
    ],
)
def test_truncated(kind: str, options: dict[str, bool]) -> None:
    """A cut file is an error, or the full picture if only trailing bytes are gone."""
    random = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = encode(random, kind, **options)
    full = decoded(data)
    refused = 0
    for cut in {*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 24, len(data))}:
        try:
            found = decoded(data[:cut])
        except DecodeError:
            refused += 1
            continue
        assert len(data) - cut <= 64, f"cut at {cut} of {len(data)} was accepted"
        assert (found == full).all(), f"cut at {cut} of {len(data)} gave another picture"
    assert refused > 100


def test_empty() -> None:
    """A file of zero bytes is named as such."""
    with pytest.raises(DecodeError):
        decode_image(b"")


def test_text() -> None:
    """A text file, whatever its name, is no image; the reason shows its first bytes."""
    with pytest.raises(DecodeError, match=r"\b17\b"):
        decode_image(b"<!DOCTYPE html>\r\n")


@pytest.mark.parametrize(
    "data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.7"]
)
def test_interpreted_formats_are_not_opened(data: bytes) -> None:
    """EPS would be given to Ghostscript: the allow-list keeps it out."""
    with pytest.raises(DecodeError):
        decode_image(data)


def test_eps_written_by_pillow_is_not_opened() -> None:
    """A whole and valid EPS file is refused as well."""
    with pytest.raises(DecodeError):
        decode_image(encode(gradient(), "EPS"))


def test_giant_is_refused_quickly() -> None:
    """A small file that declares 50,000 x 50,000 pixels costs neither time nor memory."""
    data = png(50_000, 50_000, depth=8, colour=2, rows=bytes(1000))
    assert len(data) < 200
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(DecodeError):
        decode_image(data)
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 1 << 20


def test_giant_costs_no_memory_outside_python() -> None:
    """Pillow's own allocations are not traced: the peak of a whole process stays small."""
    code = (
        "import resource, sys\n"
        "from featstore.sources.decode import decode_image\n"
        "from featstore.errors import DecodeError\n"
        "from tests.images import png\n"
        "data = png(50_000, 50_000, depth=8, colour=2, rows=bytes(1000))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    decode_image(data)\nexcept DecodeError:\n    pass\n"
        "else:\n    sys.exit('decoded')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50 * 1024  # KiB; unpacked it would be 7.5 GB


def test_limit_is_exact() -> None:
    """``max_pixels`` itself is accepted, one row more is not."""
    assert decode_image(encode(gradient(10, 10)), max_pixels=100).size == (10, 10)
    with pytest.raises(DecodeError, match=r"\b10\b.*\b11\b.*100"):
        decode_image(encode(gradient(10, 11)), max_pixels=100)


@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    """Random bytes raise DecodeError or give a picture, nothing else."""
    try:
        decode_image(data)
    except DecodeError as error:
        assert str(error)


@settings(max_examples=200)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "ICO", "JPEG2000"]),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12
    ),
)
def test_damaged_files(kind: str, changes: list[tuple[float, int]]) -> None:
    """Changed bytes in real files raise DecodeError or give a picture, nothing else."""
    data = bytearray(encode(gradient(16, 16), kind))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        assert decode_image(bytes(data), max_pixels=1_000_000).mode == "RGB"
    except DecodeError as error:
        assert str(error)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("high", [1, 200, 255])
def test_integers_of_8_bits_are_refused(kind: str, high: int) -> None:
    """Scaling 0..255 by 1/257 would make a picture black; black itself and 16-bit levels are pictures."""
    values = np.linspace(0, high, 12).astype(np.uint16).reshape(3, 4)
    with pytest.raises(DecodeError, match=rf"0\.\.{high}"):
        decode_image(encode(Image.fromarray(values), kind))
    assert not decoded(encode(Image.fromarray(values * 0), kind)).any()
    assert decoded(encode(Image.fromarray(values * 257), kind)).max() == high


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "CMYK", "1"])
def test_strips_change_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is converted strip by strip is the one that is converted at once."""
    pixels = gradient(50, 41)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode == "P":
        image = image.quantize(16)
        image.info["transparency"] = bytes(range(0, 160, 10))
    else:
        image = image.convert(mode)
    whole = np.asarray(to_rgb(image))
    monkeypatch.setattr("featstore.sources.decode.STRIP_PIXELS", 130)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), whole)


def test_jpeg_with_thousands_of_scans() -> None:
    """Scans x pixels are limited, and refused within a second; what encoders write is decoded."""
    data = encode(Image.new("L", (2000, 2000), 90), "JPEG", progressive=True)
    start, end = data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda")), data.rfind(b"\xff\xd9")
    bomb = data[:end] + data[start:end] * 4000 + data[end:]
    begin = time.monotonic()
    with pytest.raises(DecodeError, match="4,0"):
        decode_image(bomb)
    assert time.monotonic() - begin < 5
    few = data[:end] + data[start:end] * 10 + data[end:]
    assert decode_image(few).size == decode_image(data).size == (2000, 2000)


def test_heic() -> None:
    """HEIC is decoded where pillow-heif is installed."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    data = encode(smooth(), "HEIF", quality=95)
    # A lossy codec of its own; 12 levels tell a picture from noise.
    assert worst(decoded(data), smooth()) <= 12


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "colour", "sample_bytes"), [(16, 0, 2), (8, 6, 4)])
def test_memory_of_the_largest_picture(depth: int, colour: int, sample_bytes: int) -> None:
    """A file of some MB that declares nearly the most pixels takes 2 GB at most (with 64-bit integers it was 3.4)."""
    code = f"""
import resource, zlib
from tests import images
from featstore.sources.decode import decode_image
width, height = 13000, 13700
packer = zlib.compressobj(1)
row = b"\\0" + b"\\x90\\x40" * (width * {sample_bytes} // 2)
data = b"".join([packer.compress(row) for _ in range(height)] + [packer.flush()])
images.zlib.compress = lambda rows: data
file = images.png(width, height, depth={depth}, colour={colour}, rows=b"")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert decode_image(file).size == (width, height)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) < 2 * 2**20


def picture_file(size: tuple[int, int], *, orientation: int = 1, kind: str = "JPEG") -> bytes:
    """A smooth picture, wider than high unless it is turned."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels = (255 * np.stack([x, y, (x + y) / 2], axis=2)).astype(np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(file, kind, exif=exif, quality=95)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("least", "scale"), [((320, 240), 1), ((160, 120), 2), ((161, 100), 1), ((30, 20), 8)]
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_suffices(
    orientation: int, least: tuple[int, int], scale: int
) -> None:
    """Never below the size that is asked for, in upright coordinates; the same picture otherwise."""
    data = picture_file((320, 240), orientation=orientation)
    full = decode_image(data)
    asked: list[tuple[int, int]] = []

    def least_size(width: int, height: int) -> tuple[int, int]:
        asked.append((width, height))
        return least if width > height else least[::-1]

    small = decode_image(data, least=least_size)
    assert asked == [full.size]
    assert small.size == (full.width // scale, full.height // scale)
    expected = np.asarray(full.resize(small.size, Image.Resampling.BOX), np.int16)
    assert np.abs(np.asarray(small, np.int16) - expected).max() <= 6


def test_other_formats_are_decoded_whole() -> None:
    """Only JPEG has scales."""
    data = picture_file((320, 240), kind="PNG")
    assert decode_image(data, least=lambda *_: (1, 1)).size == (320, 240)
