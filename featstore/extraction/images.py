"""Decoded images in the views of a store, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from featstore.errors import DecodeError, SourceError
from featstore.files.array_types import Array
from featstore.format.ids import content_sha256
from featstore.format.manifest import PreprocessingRecord
from featstore.format.pictures import PictureFormat
from featstore.format.views import ViewSet
from featstore.sources import Source
from featstore.sources.load import ViewRule, decode, read_image, reason_unreadable


@dataclass
class Batch:
    """Decoded images of consecutive rows.

    Attributes:
        images: (B, V, 3, H, W) uint8; zeros where the image is unusable.
        hashes: (B, 32) uint8, SHA-256 of the files; zeros where the file could not be read.
        reasons: per row, why it is unusable, or None.
        failure: why the run cannot go on; None if nothing failed. It is a text because an exception of a loading
            process would arrive with that process's traceback.
        pictures: file of the stored copy of each image, empty where it is unusable; no files if none are stored.
    """

    images: Tensor
    hashes: Array
    reasons: list[str | None]
    failure: str | None = None
    pictures: list[bytes] = field(default_factory=list)

    def check(self) -> "Batch":
        """Return this batch, if the machine could load it.

        Raises:
            SourceError: the disk, the network or the memory failed.
        """
        if self.failure is not None:
            raise SourceError(self.failure)
        return self


class ViewDataset(Dataset[Batch]):
    """Reads, hashes and decodes the images of a list of rows, and cuts every view at the teacher's size.

    Args:
        source: of the images.
        views: of the store.
        preprocessing: of the teacher.
        pictures: how copies of the images are made; None makes none.
    """

    def __init__(
        self,
        source: Source,
        views: ViewSet,
        preprocessing: PreprocessingRecord,
        pictures: PictureFormat | None = None,
    ) -> None:
        self.source = source
        self.pictures = pictures
        self.rule = ViewRule.of_teacher(views, preprocessing)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def row_bytes(self) -> int:
        """Bytes of the decoded views of one image."""
        height, width = self.rule.size
        return len(self.rule.views) * 3 * height * width

    def load(self, rows: Sequence[int]) -> Batch:
        """Load one batch in this process.

        Raises:
            SourceError: the disk, the network or the memory failed.
        """
        return self.__getitems__(rows).check()

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Load one batch; an image that cannot be used becomes zeros and a reason, never an exception."""
        views = self.rule.views
        images = np.zeros((len(rows), len(views), *self.rule.size, 3), dtype=np.uint8)
        hashes = np.zeros((len(rows), 32), dtype=np.uint8)
        reasons: list[str | None] = [None] * len(rows)
        failure = None
        pictures = [b""] * len(rows) if self.pictures else []
        for i, row in enumerate(rows):
            try:
                data = read_image(self.source, row)
                hashes[i] = np.frombuffer(content_sha256(data), dtype=np.uint8)
                image = decode(self.source, row, data)
                for v, view in enumerate(views.views):
                    images[i, v] = self.rule.cut(image, view, sample_id=self.source.sample_ids[row])
                if self.pictures:
                    pictures[i] = self.pictures.encode(image)
            except DecodeError as error:
                reasons[i] = str(error)
            except OSError as error:
                reasons[i] = reason_unreadable(error)
            except SourceError as error:
                failure = str(error)
                break
        pixels = torch.from_numpy(images).permute(0, 1, 4, 2, 3)
        return Batch(pixels, hashes, reasons, failure, pictures)
