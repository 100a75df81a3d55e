"""Decoded images in the views of a store, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from featstore.containers.base import Array
from featstore.errors import DecodeError
from featstore.format.ids import content_sha256
from featstore.format.manifest import PreprocessingRecord
from featstore.format.views import ViewSet, cut, view_box
from featstore.sources import Source
from featstore.sources.decode import decode_image


@dataclass
class Batch:
    """Decoded images of consecutive rows.

    Attributes:
        images: (B, V, 3, H, W) uint8; zeros where the image is unusable.
        hashes: (B, 32) uint8, SHA-256 of the files; zeros where the file could not be read.
        reasons: per row, why it is unusable, or None.
    """

    images: Tensor
    hashes: Array
    reasons: list[str | None]


class ViewDataset(Dataset[Batch]):
    """Reads, hashes and decodes the images of a list of rows, and cuts every view at the teacher's size."""

    def __init__(self, source: Source, views: ViewSet, preprocessing: PreprocessingRecord) -> None:
        self.source = source
        self.views = views
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Load one batch; an image that cannot be used becomes zeros and a reason, never an exception."""
        height, width = self.preprocessing.size
        images = np.zeros((len(rows), len(self.views), height, width, 3), dtype=np.uint8)
        hashes = np.zeros((len(rows), 32), dtype=np.uint8)
        reasons: list[str | None] = [None] * len(rows)
        for i, row in enumerate(rows):
            try:
                data = self.source.read(row)
                hashes[i] = np.frombuffer(content_sha256(data), dtype=np.uint8)
                self._cut_views(data, self.source.sample_ids[row], out=images[i])
            except DecodeError as error:
                reasons[i] = str(error)
            except OSError as error:
                reasons[i] = f"cannot be read: {error.strerror or error}"
        return Batch(torch.from_numpy(images).permute(0, 1, 4, 2, 3), hashes, reasons)

    def _cut_views(self, data: bytes, sample_id: str, *, out: Array) -> None:
        image = decode_image(data)
        rule = self.preprocessing
        for v, view in enumerate(self.views.views):
            box = view_box(
                view,
                self.views,
                sample_id=sample_id,
                width=image.width,
                height=image.height,
                size=rule.size,
                crop_pct=rule.crop_pct,
                crop_mode=rule.crop_mode,
            )
            out[v] = cut(
                image,
                box,
                size=rule.size,
                interpolation=rule.interpolation,
                mirrored=view.mirrored,
            )
