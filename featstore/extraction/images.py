"""What a teacher is given, in batches: images in the views of a store, tokens of texts, or points of clouds."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from featstore.errors import DecodeError, SourceError, TeacherError
from featstore.extraction.teachers import Teacher
from featstore.files.array_types import Array
from featstore.format.ids import content_sha256
from featstore.format.manifest_records import PointRecord, PreprocessingRecord, TextRecord
from featstore.format.pictures import PictureFormat
from featstore.format.tokenizers import pad
from featstore.format.views import ViewSet
from featstore.sources import Source
from featstore.sources.load import ViewRule, decode, read_image, reason_unreadable
from featstore.sources.points import decode_points, prepare_points

MOST_COUNTED = 1000  # texts whose tokens are counted before a run


@dataclass
class InputBatch:
    """Inputs of consecutive rows."""

    # (B, V, 3, H, W) uint8, zeros where the image is unusable; or (B, 1, L) int32 token numbers; or (B, 1, P, C)
    # float32 points
    inputs: Tensor
    # (B, 32) uint8, SHA-256 of the files or texts; zeros where the file could not be read
    hashes: Array
    reasons: list[str | None]  # per row, why it is unusable, or None
    # why the run cannot go on; None if nothing failed. It is a text because an exception of a loading process would
    # arrive with that process's traceback.
    failure: str | None = None
    # file of the stored copy of each image, empty where it is unusable; no files if none are stored
    pictures: list[bytes] = field(default_factory=list)

    def check(self) -> "InputBatch":
        """Return this batch, if the machine could load it."""
        if self.failure is not None:
            raise SourceError(self.failure)
        return self


class InputDataset(Dataset[InputBatch]):
    """Reads and hashes the samples of a list of rows, and makes a teacher's input of each.

    Args:
        shape: of one row before ``as_tensor``.
    """

    pictures: PictureFormat | None = None  # how copies of images are made; None makes none

    def __init__(self, source: Source, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self.source = source
        self._shape = shape
        self._dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def row_bytes(self) -> int:
        """Bytes of the input of one row, all views together."""
        return math.prod(self._shape) * self._dtype.itemsize

    def load(self, rows: Sequence[int]) -> InputBatch:
        """Load one batch in this process. Raises SourceError: the disk, the network or the memory failed."""
        return self.__getitems__(rows).check()

    def __getitems__(self, rows: Sequence[int]) -> InputBatch:
        """Load one batch; a sample that cannot be used becomes zeros and a reason, never an exception."""
        inputs = np.zeros((len(rows), *self._shape), dtype=self._dtype)
        hashes = np.zeros((len(rows), 32), dtype=np.uint8)
        reasons: list[str | None] = [None] * len(rows)
        failure = None
        pictures = [b""] * len(rows) if self.pictures else []
        for i, row in enumerate(rows):
            try:
                data = read_image(self.source, row)
                hashes[i] = np.frombuffer(content_sha256(data), dtype=np.uint8)
                copy = self.fill(inputs[i], row, data)
                if self.pictures:
                    pictures[i] = copy
            except DecodeError as error:
                reasons[i] = str(error)
            except OSError as error:
                reasons[i] = reason_unreadable(error)
            except SourceError as error:
                failure = str(error)
                break
        return InputBatch(self.as_tensor(inputs), hashes, reasons, failure, pictures)

    @abstractmethod
    def fill(self, out: Array, row: int, data: bytes) -> bytes:
        """Write the input of one row, whose bytes are ``data``, into ``out``; return the copy to store, or nothing."""

    def as_tensor(self, inputs: Array) -> Tensor:
        """The batch with its axes in the teacher's order."""
        return torch.from_numpy(inputs)


class ImageInputs(InputDataset):
    """Images: decodes them, and cuts every view at the teacher's size.

    Args:
        pictures: how copies of the images are made; None makes none.
    """

    def __init__(
        self,
        source: Source,
        views: ViewSet,
        preprocessing: PreprocessingRecord,
        pictures: PictureFormat | None = None,
    ) -> None:
        super().__init__(source, (len(views), *preprocessing.size, 3), np.uint8)
        self.rule = ViewRule.of_teacher(views, preprocessing)
        self.pictures = pictures

    def fill(self, out: Array, row: int, data: bytes) -> bytes:
        image = decode(self.source, row, data)
        for v, view in enumerate(self.rule.views.views):
            out[v] = self.rule.cut(image, view, sample_id=self.source.sample_ids[row])
        return self.pictures.encode(image) if self.pictures else b""

    def as_tensor(self, inputs: Array) -> Tensor:
        """(B, V, 3, H, W)."""
        return torch.from_numpy(inputs).permute(0, 1, 4, 2, 3)


class TextInputs(InputDataset):
    """Texts: tokenises them; one view."""

    def __init__(self, source: Source, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        super().__init__(source, (1, max_tokens), np.int32)

    def fill(self, out: Array, row: int, data: bytes) -> bytes:
        out[0] = pad(self.tokenizer(data.decode()), out.shape[1])
        return b""


class PointInputs(InputDataset):
    """Point clouds: decodes, sorts and thins them; one view."""

    def __init__(self, source: Source, record: PointRecord) -> None:
        super().__init__(source, (1, record.most_points, record.columns), np.float32)
        self.record = record

    def fill(self, out: Array, row: int, data: bytes) -> bytes:
        points = decode_points(data, self.source.sample_ids[row])
        out[0] = prepare_points(points, self.record)
        return b""


def inputs_of(
    source: Source, views: ViewSet, teacher: Teacher, pictures: PictureFormat | None = None
) -> InputDataset:
    """The samples of a source as inputs of a teacher, and copies of images if a format is given."""
    record = teacher.preprocessing
    if isinstance(record, PointRecord) != (source.kind == "points"):
        kinds = (
            ("point clouds", "images")
            if isinstance(record, PointRecord)
            else ("images", "point clouds")
        )
        raise TeacherError(
            f"--teacher.name {teacher.record.name}: takes {kinds[0]}, but the samples of {source.uri} are {kinds[1]}. "
            "A module of --teacher.library python that takes points has the attribute points."
        )
    if isinstance(record, PointRecord):
        return PointInputs(source, record)
    if isinstance(record, TextRecord):
        return TextInputs(source, teacher.tokenizer, record.max_tokens)
    if source.fixed_size not in (None, record.size):
        raise TeacherError(
            f"{source.uri}: noise of {source.fixed_size} pixels cannot be resized, and the teacher takes "
            f"{record.size}. Write noise of that size: featstore statistics noise FILE --size N."
        )
    return ImageInputs(source, views, record, pictures)


def text_notes(source: Source, teacher: Teacher) -> list[str]:
    """How many texts of a sample are at least as long as the teacher's input."""
    record = teacher.preprocessing
    if not isinstance(record, TextRecord):
        return []
    tokenizer: Any = teacher.tokenizer
    rows = np.unique(np.linspace(0, len(source) - 1, MOST_COUNTED).astype(int))
    empty = tokenizer("")
    end = empty[-1] if len(empty) == record.max_tokens else None  # padded to a fixed length
    found = [tokenizer(source.read(int(row)).decode()) for row in rows]
    cut = sum(len(item) == record.max_tokens and item[-1] != end for item in found)
    if not cut:
        return []
    return [
        f"{cut} of {len(rows)} texts looked at fill all {record.max_tokens} tokens of the teacher's input: what is "
        "longer is cut off (--teacher.max_tokens)"
    ]
