"""Decode an image file into an upright 8-bit RGB picture, or give a reason why not.

Every mode becomes RGB in a stated way (part of the manifest's ``preprocessing.decode``): EXIF
orientation is applied, transparency is laid over white, CMYK is converted, 16-bit grey is scaled by
1/257 (16-bit colour is cut to its high byte by Pillow, at most one level away), of an animation the
first frame counts. An integer picture whose values are in 1..255 is refused: they are 8-bit values in
a wider type, and scaling would make the picture black.

Memory and time of one picture are limited: a file that declares more pixels than ``max_pixels`` is
refused before it is unpacked, large pictures are converted in strips, and a progressive JPEG may have
only so many scans for its size. Formats that need an interpreter (EPS) are not opened at all.
"""

import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import cast

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from featstore.errors import DecodeError
from featstore.sources.base import has_heif

MAX_PIXELS = 178_956_970
"""Largest picture that is unpacked, in pixels; 512 MiB as RGB (Pillow's own limit for refusing)."""

DECODE_RULE = "exif-upright;alpha-over-white;16bit/257;first-frame"
"""Name of the rules above; part of a store's contract, so that a change of rules is a mismatch."""

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
    "ICO",
    "AVIF",
    "JPEG2000",
)
"""Pillow's names of what is opened; JPEG includes MPO, which some phones write. Left out: EPS,
which Pillow gives to Ghostscript, and rare formats whose decoders would only be one more risk. HEIF is
opened where the package pillow-heif is installed."""

FREE_SCANS = 32  # scans of a JPEG that are always decoded; encoders write about ten
MAX_SCAN_PIXELS = 2_000_000_000
"""Largest scans x pixels of a JPEG with more scans. Each scan goes over the whole picture once: an empty one takes 2 ns
per pixel (libjpeg-turbo, 2.5 GHz), so this is 4 s."""
SCAN_BYTES = 10
"""Least bytes of a scan: files that are too small for too many are not searched, which takes 3 % of decoding."""

STRIP_PIXELS = 2**22
"""Larger pictures are converted in strips of about this many pixels: conversions take up to 16 bytes per pixel."""

LeastSize = Callable[[int, int], tuple[int, int]]
"""From (width, height) of an upright picture to the least (width, height) that is needed of it."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright; 1 and unknown values need nothing."""


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, least: LeastSize | None = None
) -> Image.Image:
    """Decode one image file.

    Args:
        max_pixels: largest accepted width x height.
        least: decode a JPEG at 1/2, 1/4 or 1/8 of its sides where that is not below the size this returns.

    Returns:
        An upright picture of mode RGB, fully loaded.

    Raises:
        DecodeError: empty, not an image, truncated, too large, or without an 8-bit meaning.
        MemoryError: this machine has too little memory; says nothing about the image.
    """
    if not data:
        raise DecodeError("empty file (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 Mpx on and about odd EXIF; the limit below is ours and exact.
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
            width, height = image.size
            if width * height > max_pixels:
                raise DecodeError(_too_large(width, height, max_pixels))
            if image.format in ("JPEG", "MPO"):
                _check_scans(data, width * height)
            if least is not None and image.format == "JPEG":
                _reduce(image, least)
            image.load()
            return to_rgb(_upright(image))
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DecodeError(f"not an image ({len(data)} bytes, first {data[:8]!r})") from None
    except Image.DecompressionBombError as error:
        raise DecodeError(f"too many pixels: {error}") from None
    except Exception as error:  # a decoder met hostile bytes: any failure means the same
        raise DecodeError(f"cannot be decoded: {type(error).__name__}: {error}") from error


def _too_large(width: int, height: int, max_pixels: int) -> str:
    return f"too many pixels: {width} x {height} declared, at most {max_pixels:,} are unpacked"


@cache
def _formats() -> tuple[str, ...]:
    if not has_heif():
        return FORMATS
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return (*FORMATS, "HEIF")


def _check_scans(data: bytes, pixels: int) -> None:
    if len(data) // SCAN_BYTES * pixels <= MAX_SCAN_PIXELS:
        return
    scans = data.count(b"\xff\xda")  # start of scan; cannot occur inside compressed data
    if scans > FREE_SCANS and scans * pixels > MAX_SCAN_PIXELS:
        raise DecodeError(
            f"JPEG with {scans:,} scans of {pixels:,} pixels; at most {MAX_SCAN_PIXELS // pixels:,} are decoded"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; damaged EXIF of a good picture counts as none.

    Not ``ImageOps.exif_transpose``: it also copies upright pictures and writes the EXIF block anew,
    which can fail on blocks that nobody needs.
    """
    method = UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in UPRIGHT else 1
    except Exception:  # struct.error, SyntaxError, TypeError (unhashable value), ...
        return 1


def _reduce(image: Image.Image, least: LeastSize) -> None:
    """Choose the scale at which a JPEG is decoded."""
    orientation = _orientation(image)
    if orientation != 1 and (image.width % 8 or image.height % 8):
        return  # rounding up adds a part of a pixel on the right and below, which would then lie elsewhere
    size = least(*(image.size[::-1] if orientation >= 5 else image.size))
    image.draft(None, size[::-1] if orientation >= 5 else size)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded picture of any mode to RGB by the rules named at the top of this file."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        if image.mode not in ("I", "I;16"):  # of another byte order
            image = image.convert("I")
        _check_integers(image)
    width, height = image.size
    rows = max(1, STRIP_PIXELS // max(1, width))
    if height <= rows:
        return _convert(image)
    out = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        out.paste(_convert(image.crop((0, top, width, min(height, top + rows)))), (0, top))
    return out


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "L" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        raise DecodeError("floating-point image: its values have no defined 8-bit meaning")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _check_integers(image: Image.Image) -> None:
    low, high = cast(tuple[int, int], image.getextrema())
    if low < 0 or high > 65535:
        raise DecodeError(f"integer image with values {low}..{high}; expected 0..65535")
    if 0 < high <= 255:
        raise DecodeError(
            f"integer image with values {low}..{high}: 8-bit values in a wider type, which would become black; save it "
            "as an 8-bit image"
        )


def _from_integers(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    # 32 bits hold 65,535 + 128.
    grey = ((values.astype(np.int32) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG: the one grey value that stands for "nothing here"
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
