"""Read one image of a source, decode it and cut its views. Both phases use this, so that both see the same pixels.

An image that cannot be used is an error of the image (``DecodeError``, ``OSError``: its row becomes invalid). A disk,
a network or a memory that fails is an error of the run (``SourceError``), after some retries: the same image can be
good again a moment later, and a row marked invalid would stay so.
"""

import errno
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from featstore.errors import SourceError
from featstore.format.manifest_records import PreprocessingRecord
from featstore.format.views import Box, CropMode, Interpolation, View, ViewSet, cut, view_box
from featstore.sources.base import Source
from featstore.sources.decode import LeastSize, decode_image

Result = TypeVar("Result")

MACHINE_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ENOMEM", "EMFILE", "ENFILE", "ENOBUFS", "EAGAIN", "EBUSY", "EINTR"),
        *("ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENOLCK", "EREMOTEIO", "ENXIO"),
    )
    if hasattr(errno, name)
)
"""Error numbers that say something about the disk, the network or a limit, and nothing about one file."""

RETRY_PAUSES_S = (0.1, 0.5, 2.0)  # pauses before the second, third and fourth attempt

CANNOT_BE_READ = "cannot be read"
"""How the reason of an image begins that could not be read; ``--repair`` tries such rows again."""


def read_image(source: Source, row: int) -> bytes:
    """Return the bytes of one image; retry while the machine is at fault.

    Raises:
        OSError: this image cannot be read.
        SourceError: the disk, the network or the memory failed, also when tried again.
    """
    return _with_retries(lambda: source.read(row), source, row)


def decode(source: Source, row: int, data: bytes, *, least: LeastSize | None = None) -> Image.Image:
    """Decode the bytes of one image, with ``least`` as for ``decode_image``; retry where memory is short.

    Raises:
        DecodeError: the bytes are not a usable picture.
        SourceError: there is not enough memory, also when tried again.
    """
    return _with_retries(lambda: decode_image(data, least=least), source, row)


def reason_unreadable(error: OSError) -> str:
    """Why an image cannot be read, as the ledger keeps it."""
    return f"{CANNOT_BE_READ}: {error.strerror or error}"


def was_unreadable(reason: str) -> bool:
    """Whether the reason of an invalid row may have passed: such a row is worth another attempt."""
    return reason.startswith(CANNOT_BE_READ) or "MemoryError" in reason or "out of memory" in reason


def _with_retries(attempt: Callable[[], Result], source: Source, row: int) -> Result:
    for pause_s in (*RETRY_PAUSES_S, None):
        try:
            return attempt()
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno not in MACHINE_ERRORS:
                raise
            if pause_s is None:
                raise SourceError(_machine_failed(source, row, error)) from error
            time.sleep(pause_s)
    raise AssertionError("unreachable")


def _machine_failed(source: Source, row: int, error: OSError | MemoryError) -> str:
    where = f"{source.uri}: {source.sample_ids[row]}"
    again = "then run the same command again to resume"
    if isinstance(error, MemoryError):
        return f"{where}: not enough memory to decode it. Use fewer --workers or free some memory, {again}."
    name = errno.errorcode.get(error.errno or 0, "")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where}: too many open files ({name}). Raise the limit (ulimit -n 4096), {again}."
    return (
        f"{where}: cannot be read in {len(RETRY_PAUSES_S) + 1} attempts: {error.strerror} ({name}). Check the disk or "
        f"the network, {again}. If this one file is damaged, replace it, by an empty file if need be: that becomes an "
        "invalid row."
    )


@dataclass(frozen=True)
class Frame:
    """Which part of an image a view shows."""

    image: tuple[int, int]  # (height, width) of the upright image, pixels
    box: Box  # of the view, in pixels of the image
    mirrored: bool  # whether the view is mirrored left to right
    size: tuple[int, int]  # (height, width) of the view, pixels

    @property
    def least_size(self) -> tuple[int, int]:
        """Least (width, height) of a copy of the whole image out of which the view is cut without enlarging it."""
        left, upper, right, lower = self.box
        share = max(self.size[1] / (right - left), self.size[0] / (lower - upper))
        return math.ceil(self.image[1] * share), math.ceil(self.image[0] * share)


@dataclass(frozen=True)
class ViewRule:
    """Which region of an image a view shows: the teacher's preprocessing, as far as it decides the crop."""

    views: ViewSet  # of the store
    size: tuple[int, int]  # (height, width) of the *teacher's* input, pixels
    crop_pct: float  # of the teacher
    crop_mode: CropMode  # of the teacher
    interpolation: Interpolation  # of the teacher; a student uses it as well

    @classmethod
    def of_teacher(cls, views: ViewSet, record: PreprocessingRecord) -> "ViewRule":
        """Take the rule from the manifest's record of a teacher's preprocessing."""
        return cls(views, record.size, record.crop_pct, record.crop_mode, record.interpolation)

    def cut(
        self,
        image: Image.Image,
        view: View,
        *,
        sample_id: str,
        size: tuple[int, int] | None = None,
        full_size: tuple[int, int] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Cut one view out of a decoded image.

        Args:
            image: upright, RGB.
            sample_id: of the image, as the store names it; decides the place of seeded crops.
            size: (height, width) of the result in pixels; the teacher's unless given.
            full_size: (width, height) of the original where ``image`` is a smaller copy of it.

        Returns:
            (H, W, 3) uint8.
        """
        width, height = full_size or image.size
        return self.cut_frame(
            image, self.frame((height, width), view, sample_id=sample_id, size=size)
        )

    def cut_frame(
        self, image: Image.Image, frame: Frame, *, whole: tuple[float, float] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Cut a frame out of an upright RGB image, or out of a smaller copy of it: (H, W, 3) uint8.

        Args:
            whole: (width, height) in pixels of ``image`` that all of the frame's image spans; those of ``image``
                unless given.
        """
        width, height = whole or image.size
        x, y = width / frame.image[1], height / frame.image[0]
        left, upper, right, lower = frame.box
        picture = cut(
            image,
            (left * x, upper * y, min(right * x, image.width), min(lower * y, image.height)),
            size=frame.size,
            interpolation=self.interpolation,
            mirrored=frame.mirrored,
        )
        return np.asarray(picture)

    def frame(
        self,
        image: tuple[int, int],
        view: View,
        *,
        sample_id: str,
        size: tuple[int, int] | None = None,
    ) -> Frame:
        """Which part of an image of (height, width) a view shows; the other arguments are those of ``cut``."""
        box = view_box(
            view,
            self.views,
            sample_id=sample_id,
            width=image[1],
            height=image[0],
            size=self.size,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )
        return Frame(image, box, view.mirrored, size or self.size)

    def describe(self) -> dict[str, Any]:
        """As JSON values, for the file beside an exported student."""
        return {
            "view": "canonical",
            "size": list(self.size),
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "interpolation": self.interpolation,
        }

    @classmethod
    def from_description(cls, values: dict[str, Any]) -> "ViewRule":
        """The inverse of ``describe``."""
        height, width = values["size"]
        return cls(
            ViewSet(),
            (height, width),
            values["crop_pct"],
            values["crop_mode"],
            values["interpolation"],
        )
