"""From a request to a batch: read, check, decode and cut on the loader's side; normalise on the device.

The student is shown exactly the region that the teacher saw in the chosen stored view: the box comes from the
*teacher's* preprocessing, the pixels are resampled to the student's own size.
"""

# B batch, S samples, V views, D teacher width, H W student input, C channels (3)

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import DataLoader

from distill.join import Samples
from distill.losses import IGNORE
from distill.sampler import CANONICAL, Indices, Request
from featstore import FeatureStore
from featstore.decode import decode_image
from featstore.errors import (
    ConfigError,
    DecodeError,
    MissingSamples,
    ViewMismatch,
    shorten,
)
from featstore.ids import content_sha256
from featstore.torch_data import as_tensor
from featstore.views import CropMode, Interpolation, View, ViewSet, cut, view_box


@dataclass(frozen=True)
class ViewRule:
    """The teacher's preprocessing, as far as it decides which region is cut.

    Attributes:
        views: of the store; for a student without a store, the canonical view alone.
        size: (height, width) of the *teacher's* input.
        crop_pct: of the teacher.
        crop_mode: of the teacher.
        interpolation: of the teacher; the student uses it as well.
    """

    views: ViewSet
    size: tuple[int, int]
    crop_pct: float
    crop_mode: CropMode
    interpolation: Interpolation

    @classmethod
    def of_store(cls, store: FeatureStore, field: str) -> "ViewRule":
        """Take it from a manifest: the teacher that made the field says how pictures were cut.

        Raises:
            ManifestMismatch: no teacher made the field.
            ViewMismatch: its teacher saw no images.
        """
        record = store.manifest.teacher_of(field).preprocessing
        if record is None:
            raise ViewMismatch(
                f'{store.path}: field "{field}" was not made from images, so there is nothing to train a student on.'
            )
        return cls(
            store.manifest.views,
            record.size,
            record.crop_pct,
            record.crop_mode,
            record.interpolation,
        )

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


@dataclass(frozen=True)
class Pictures:
    """What a loading process hands over.

    Attributes:
        pixels: (B, C, H, W) uint8.
        requests: (B, 3) int64: sample, column and labelled of each ``Request``.
        problems: why pictures could not be made; then ``pixels`` must not be used.
        changed: ids whose bytes are not those that the teacher saw.
    """

    pixels: Tensor
    requests: Tensor
    problems: list[str]
    changed: list[str]


class ViewDataset(torch.utils.data.Dataset[Pictures]):
    """Pictures by request. The loader hands over a whole batch at once through ``__getitems__``."""

    def __init__(
        self,
        samples: Samples,
        rule: ViewRule,
        *,
        size: tuple[int, int],
        jitter: float = 0.0,
        cache_mb: int = 0,
    ) -> None:
        self.samples = samples
        self.rule = rule
        self.size = size
        self.jitter = jitter
        self._room = cache_mb * 2**20
        self._cache: dict[tuple[int, int], np.ndarray[Any, Any]] = {}

    def __len__(self) -> int:
        return len(self.samples.ids)

    def __getitem__(self, request: Request) -> Pictures:
        """One picture, as a batch of one."""
        return self.__getitems__([request])

    def __getitems__(self, requests: Sequence[Request]) -> Pictures:
        """Make a batch of pictures; failures are handed over, so that the message is not a worker's traceback."""
        pixels = np.zeros((len(requests), *self.size, 3), np.uint8)
        problems: list[str] = []
        changed: list[str] = []
        for place, request in enumerate(requests):
            try:
                view = self._view(request, changed)
            except (DecodeError, OSError) as error:
                problems.append(f"{self.samples.ids[request.sample]} ({error})")
            else:
                pixels[place] = (
                    view
                    if not self.jitter or not request.draw
                    else jittered(view, self.jitter, request.draw)
                )
        table = [(request.sample, request.column, int(request.labelled)) for request in requests]
        return Pictures(
            torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
            torch.tensor(table, dtype=torch.int64).reshape(-1, 3),
            problems,
            changed,
        )

    def _view(self, request: Request, changed: list[str]) -> np.ndarray[Any, Any]:
        key = (request.sample, request.column)
        if key in self._cache:
            return self._cache[key]
        samples = self.samples
        data = samples.source.read(int(samples.positions[request.sample]))
        if (
            samples.hashes is not None
            and content_sha256(data) != samples.hashes[request.sample].tobytes()
        ):
            changed.append(samples.ids[request.sample])
        image = decode_image(data)
        view = (
            View(kind="canonical")
            if request.column == CANONICAL
            else self.rule.views.views[request.column]
        )
        box = view_box(
            view,
            self.rule.views,
            sample_id=samples.stored_ids[request.sample],
            width=image.width,
            height=image.height,
            size=self.rule.size,
            crop_pct=self.rule.crop_pct,
            crop_mode=self.rule.crop_mode,
        )
        picture = cut(
            image,
            box,
            size=self.size,
            interpolation=self.rule.interpolation,
            mirrored=view.mirrored,
        )
        pixels = np.asarray(picture)
        if self._room >= pixels.nbytes:
            self._room -= pixels.nbytes
            self._cache[key] = pixels
        return pixels


def jittered(pixels: np.ndarray[Any, Any], strength: float, bits: int) -> np.ndarray[Any, Any]:
    """Change brightness, contrast and saturation, each by a factor uniform in 1 +- strength.

    Args:
        pixels: (H, W, C) uint8.
        strength: 0 to 1.
        bits: random bits that decide the factors.
    """
    image = Image.fromarray(pixels)
    generator = np.random.default_rng(bits)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(1 + strength * generator.uniform(-1, 1))
    return np.asarray(image)


def _same(pictures: Any) -> Any:
    """Collate function: ``__getitems__`` has collated already. At module level, so that it can be pickled."""
    return pictures


class Batches(Protocol):
    """What the loader needs of a sampler."""

    def __iter__(self) -> Iterator[list[Request]]: ...


def load(
    dataset: ViewDataset, batches: Batches | Sequence[list[Request]], *, workers: int
) -> Iterator[Pictures]:
    """Make batches, in order, with or without further processes, and stop at the first that is not what it should be.

    Raises:
        MissingSamples: the bytes of an image are not those that the teacher saw.
        ConfigError: an image that the store knows as valid cannot be read or decoded here.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_same,
        # A generator of its own: otherwise starting the loader would move the global one, and a resumed run differ.
        generator=torch.Generator().manual_seed(0),
    )
    where = dataset.samples.source.uri
    for pictures in loader:
        if pictures.changed:
            raise MissingSamples(
                f"{where}: the bytes of {len(pictures.changed)} images are not those the teacher saw: "
                f"{shorten(pictures.changed)}. Their stored features belong to other pictures. Restore the files, or "
                "extract a store of the new ones."
            )
        if pictures.problems:
            raise ConfigError(
                f"{where}: {len(pictures.problems)} images cannot be read: {shorten(pictures.problems)}. "
                "They could be when the store was written; restore the files."
            )
        yield pictures


@dataclass(frozen=True)
class Batch:
    """One piece of a step, on the device.

    Attributes:
        images: (B, C, H, W) float32, normalised.
        labels: (B,) int64; ``IGNORE`` where the label is unknown or must not be used.
        teacher: (B, D) float32 stored features of the very same views; None for methods that need none.
        indices: (B,) int64 in ``Samples``.
    """

    images: Tensor
    labels: Tensor
    teacher: Tensor | None
    indices: Tensor


class Features:
    """Stored features by sample: one vector per view, as float32.

    Raises:
        ConfigError: no such field, or one that is not a vector.
    """

    def __init__(self, store: FeatureStore, field: str, samples: Samples) -> None:
        fields = store.manifest.fields
        if field not in fields:
            raise ConfigError(
                f"--field {field}: {store.path} has no such field; it has: {shorten(sorted(fields))}."
            )
        if len(fields[field].shape) != 1:
            vectors = [name for name, record in fields.items() if len(record.shape) == 1]
            raise ConfigError(
                f"--field {field}: has shape {fields[field].shape} per view; these methods need "
                "one vector. Fields with one: "
                f"{shorten(vectors) or 'none'}."
            )
        self.store = store
        self.field = field
        self.width = fields[field].shape[0]
        self._samples = samples
        canonical = [
            i for i, view in enumerate(store.manifest.views.views) if view == View(kind="canonical")
        ]
        self.reference = canonical[0] if canonical else 0
        """Column that stands for an image where one view must: the canonical one if it is stored, else the first."""

    def take(self, indices: Indices, columns: Indices | None = None) -> Tensor:
        """Read vectors.

        Args:
            indices: (S,) in ``Samples``.
            columns: (S,) on the view axis; None takes the reference view.

        Returns:
            (S, D) float32.
        """
        rows = self._samples.rows[indices]
        stored = self.store.gather(self.field, rows)
        if stored.shape[1] == 1:
            return _as_float32(stored[:, 0])
        chosen = np.full(len(rows), self.reference) if columns is None else columns
        return _as_float32(stored[np.arange(len(rows)), chosen])

    def chunks(
        self, indices: Indices, columns: Sequence[int], *, size: int = 4096
    ) -> Iterator[Tensor]:
        """All the given views of all the given samples, in parts of (n, D)."""
        for start in range(0, len(indices), size):
            stored = self.store.gather(
                self.field, self._samples.rows[indices[start : start + size]]
            )
            yield _as_float32(stored[:, list(columns)]).reshape(-1, self.width)


def _as_float32(stored: np.ndarray[Any, Any]) -> Tensor:
    """Convert with torch: it has vector instructions for float16, where numpy takes eight times as long."""
    return as_tensor(stored).float()


class BatchMaker:
    """Turns pictures into a batch on the device."""

    def __init__(
        self,
        samples: Samples,
        features: Features | None,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self._labels = torch.from_numpy(samples.labels)
        self._features = features
        self._mean = torch.tensor(mean, device=device).reshape(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).reshape(1, 3, 1, 1)
        self.device = device

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 anywhere -> float32 on the device, normalised."""
        images = pixels.to(self.device, non_blocking=True).float() / 255
        return (images - self._mean) / self._std

    def __call__(self, pictures: Pictures) -> Batch:
        """Add labels and stored features."""
        indices, columns, labelled = pictures.requests.unbind(1)
        labels = torch.where(labelled.bool(), self._labels[indices], IGNORE)
        teacher = None
        if self._features is not None:
            teacher = self._features.take(indices.numpy(), columns.numpy()).to(
                self.device, non_blocking=True
            )
        return Batch(self.normalise(pictures.pixels), labels.to(self.device), teacher, indices)
