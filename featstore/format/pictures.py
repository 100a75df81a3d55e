"""The field ``pictures``: a small copy of every image, as a file of its own, for training without the originals.

A copy is upright, RGB, and keeps its aspect ratio. Its file is a JPEG or a binary PPM with a comment that holds the
size of the original, because the boxes of views are computed from that size.
"""

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.format.manifest_records import FieldRecord, RaggedEncoding

if TYPE_CHECKING:
    from PIL import Image

PICTURES = "pictures"  # name of the field
LONGEST = 8  # longest side of a copy, as a multiple of the shorter side that was asked for
HEADER_BYTES = 1024  # room for the header of a file

_FULL_SIZE = re.compile(rb"full-size ([0-9]{1,9})x([0-9]{1,9})[^0-9]")
_SEARCHED = 256  # bytes at the start of a file that hold the comment


@dataclass(frozen=True)
class PictureFormat:
    """How copies are made."""

    side_px: int  # shorter side; smaller images keep their size
    quality: int  # of JPEG, 1 to 100; 0 stores uncompressed pixels as PPM

    @property
    def field(self) -> FieldRecord:
        """The field as the manifest describes it."""
        kind = f"JPEG of quality {self.quality}" if self.quality else "uncompressed PPM"
        return FieldRecord(
            shape=(),
            dtype="uint8",
            dims=(),
            meaning=f"file of an upright RGB copy of the image, shorter side at most {self.side_px} px, {kind}",
            per_view=False,
            encoding=RaggedEncoding(most_items=3 * LONGEST * self.side_px**2 + HEADER_BYTES),
        )

    def encode(self, image: "Image.Image") -> bytes:
        """Return the file of a copy.

        Args:
            image: upright, RGB.
        """
        from PIL import Image

        scale = min(1.0, self.side_px / min(image.size), LONGEST * self.side_px / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        note = f"full-size {image.width}x{image.height}"
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        if not self.quality:
            return f"P6\n# {note}\n{size[0]} {size[1]}\n255\n".encode() + image.tobytes()
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.quality, comment=note + "\n", exif=b"")
        return file.getvalue()


def full_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of the image that a file of the field was made from; None for any other file."""
    found = _FULL_SIZE.search(data[:_SEARCHED])
    if found is None or 0 in (size := (int(found[1]), int(found[2]))):
        return None
    return size


def typical_bytes(record: FieldRecord) -> int:
    """Return the usual size of one file of the field: a 4:3 picture, and for JPEG a sixth of its pixels."""
    assert isinstance(record.encoding, RaggedEncoding)
    pixels = (record.encoding.most_items - HEADER_BYTES) // 6
    return pixels if "PPM" in record.meaning else pixels // 6
