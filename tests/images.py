"""Small image files for the tests, made in memory."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

ORIENTATION = 0x0112  # EXIF tag


def gradient(width: int = 24, height: int = 16) -> npt.NDArray[np.uint8]:
    """(height, width, 3) picture in which every flip and rotation shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = columns * 255 // max(1, width - 1)
    green = rows * 255 // max(1, height - 1)
    blue = (rows * width + columns) % 200
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def encode(pixels: npt.NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Write pixels, or a Pillow picture, as the bytes of an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(number: int = 0, kind: str = "PNG", **options: Any) -> bytes:
    """A small image file that differs for every number."""
    pixels = gradient(12, 10)
    pixels[0, 0] = (number % 256, number // 256 % 256, 7)
    return encode(pixels, kind, **options)


def png(
    width: int, height: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b""
) -> bytes:
    """A PNG by hand, for what Pillow does not write.

    Args:
        width: pixels, as declared.
        height: pixels, as declared.
        depth: bits of one sample.
        colour: PNG's colour type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        rows: filter byte and samples of each row, before compression.
        extra: whole chunks between header and pixels.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png16(samples: npt.NDArray[np.uint16], *, extra: bytes = b"") -> bytes:
    """A 16-bit PNG of (height, width) grey or (height, width, 3) RGB samples."""
    height, width = samples.shape[:2]
    colour = 0 if samples.ndim == 2 else 2
    big_endian = samples.astype(">u2").reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in big_endian)
    return png(width, height, depth=16, colour=colour, rows=rows, extra=extra)
