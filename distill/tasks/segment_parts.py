"""Masks that follow the view, and the decoder of task ``segment``."""

# n samples, B images, C M widths of the student's feature and map, K classes, H W sides of the student's input

import dataclasses
import io
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from distill.data.samples import Samples
from distill.data.targets import Array, Targets
from distill.student.model import Student
from featstore.errors import ConfigError, DecodeError, SourceError, shorten
from featstore.format.views import cut
from featstore.sources import open_source
from featstore.sources.base import Source
from featstore.sources.config import SourceConfig
from featstore.sources.decode import FORMATS, decode_image
from featstore.sources.load import Frame

MODES = ("1", "L", "P", "I", "I;16")
"""Pillow's names of pictures with one channel of whole numbers."""

MOST_CHECKED = 2000
"""Masks that are read before training to find wrong sizes and values; the others are checked when they are used."""

FINEST = 8
"""The decoder's finer map is the last one with at least 1 / FINEST of the input's side."""


class Masks(Targets):
    """Masks of images, resampled to the nearest pixel.

    Args:
        source: Of the mask images.
        rows: (n,) row in it of each sample's mask; -1 without one.
        classes: K.
        ignore: Value of pixels without a class.
        task: Name of the task, for messages.
    """

    def __init__(
        self,
        source: Source,
        rows: npt.NDArray[np.int64],
        *,
        classes: int,
        ignore: int,
        task: str = "segment",
    ) -> None:
        self.source, self.rows = source, rows
        self.classes, self.ignore, self.task = classes, ignore, task
        self.known = rows >= 0

    def of(self, sample: int, frame: Frame) -> Array:
        """(H, W) int32 class numbers of the view."""
        if not self.known[sample]:
            return np.full(frame.size, self.ignore, np.int32)
        mask = self.read(sample, frame.image)
        shown = cut(
            Image.fromarray(mask),
            frame.box,
            size=frame.size,
            interpolation="nearest",
            mirrored=frame.mirrored,
        )
        return np.array(shown, np.int32)

    def read(self, sample: int, image: tuple[int, int]) -> npt.NDArray[np.int32]:
        """The whole mask of an image of (height, width)."""
        row = int(self.rows[sample])
        where = f"mask {self.source.sample_ids[row]} of {self.source.uri}"
        try:
            picture = Image.open(io.BytesIO(self.source.read(row)), formats=FORMATS[:9])
            picture.load()
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise SourceError(f"{where}: cannot be read ({error}).") from None
        if picture.mode not in MODES:
            raise SourceError(
                f"{where}: has the mode {picture.mode}; expected one channel whose values are class numbers."
            )
        mask = np.array(picture, np.int32)
        if mask.shape != image:
            raise SourceError(
                f"{where}: has {mask.shape[1]} x {mask.shape[0]} pixels, its image {image[1]} x {image[0]}."
            )
        unknown = np.unique(mask[((mask < 0) | (mask >= self.classes)) & (mask != self.ignore)])
        if len(unknown):
            ignored = "" if 0 <= self.ignore < self.classes else f" or {self.ignore} (ignored)"
            raise SourceError(
                f"{where}: holds the values {shorten(unknown.tolist())}; --task {self.task} expects 0 to "
                f"{self.classes - 1}{ignored}."
            )
        return mask

    def check_some(self, samples: Samples) -> None:
        """Read at most ``MOST_CHECKED`` masks and their images, evenly spread over all."""
        members = np.flatnonzero(self.known)
        for sample in members[:: -(-len(members) // MOST_CHECKED)]:
            try:
                image = decode_image(samples.source.read(int(samples.positions[sample])))
            except (OSError, DecodeError):
                continue  # the loader names images that cannot be read
            try:
                self.read(int(sample), (image.height, image.width))
            except SourceError as error:
                raise ConfigError(f"--task {self.task}: {error}") from None


def open_masks(
    config: SourceConfig,
    samples: Samples,
    *,
    folder: str,
    member: str,
    classes: int,
    ignore: int,
    task: str = "segment",
) -> Masks:
    """Find the mask of each sample.

    Args:
        folder: Option ``masks`` of the task.
        member: Option ``member`` of the task.
        classes: K.
        ignore: Value of pixels without a class.
    """
    if not folder and not member:
        raise ConfigError(
            f"--task {task} needs masks: --{task}.masks FOLDER, or --{task}.member for masks beside the images."
        )
    if member and config.kind == "tars":
        source = open_source(
            dataclasses.replace(config, image_member=member, labels="", include=["*"])
        )
        expected, names = list(samples.ids), list(source.sample_ids)
    else:
        path = folder or config.path
        source = open_source(SourceConfig(kind="folder", path=path, labels_from="none"))
        expected = [_stem(sample_id) + member for sample_id in samples.ids]
        names = [name if member else _stem(name) for name in source.sample_ids]
    index = {name: row for row, name in enumerate(names)}
    rows = np.array([index.get(name, -1) for name in expected], dtype=np.int64)
    if (rows < 0).all():
        given = f"masks {Path(folder).absolute()}" if folder else f"member {member}"
        raise ConfigError(
            f"--{task}.{given}: no image has a mask there. Images are called {shorten(samples.ids, 3)}, masks "
            f"{shorten(source.sample_ids, 3)}."
        )
    return Masks(source, rows, classes=classes, ignore=ignore, task=task)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


class SegmentHead(nn.Module):
    """A decoder in the manner of LR-ASPP (Howard et al., ICCV 2019): (B, K, H, W) from a finer and the last map.

    The last map goes through a 1x1 convolution, gated by its mean over the picture; its classes are added to those of a
    finer map, and the sum is enlarged bilinearly.

    Args:
        student: Gives its widths and input size; its maps are those of its stages where it has them.
        classes: K.
        width: Channels of the decoder.
    """

    def __init__(self, student: Student, classes: int, *, width: int) -> None:
        super().__init__()
        self.size = student.input_size
        self.finer = student.finer_stage(FINEST)
        self.stages = self.finer is not None
        last = student.map_channels
        self.project = nn.Sequential(
            nn.Conv2d(last, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.gate = nn.Conv2d(last, width, 1)
        self.classify = nn.Conv2d(width, classes, 1)
        if self.finer is not None:
            self.refine = nn.Conv2d(student.stage_channels[self.finer], classes, 1)

    def forward(self, features: Tensor, last: Tensor, stages: tuple[Tensor, ...]) -> Tensor:
        """(B, C) feature, (B, M, h, w) map, maps of the stages -> (B, K, H, W)."""
        gate = self.gate(last.mean((2, 3), keepdim=True)).sigmoid()
        out = self.classify(self.project(last) * gate)
        if self.finer is not None:
            finer = self.refine(stages[self.finer])
            out = finer + F.interpolate(
                out, size=finer.shape[2:], mode="bilinear", align_corners=False
            )
        return F.interpolate(out, size=self.size, mode="bilinear", align_corners=False)
