"""From a request to a batch: read, check, decode and cut on the loader's side; normalise on the device.

The student is shown exactly the region that the teacher saw in the chosen stored view: the box comes from the
*teacher's* preprocessing, the pixels are resampled to the student's own size.
"""

# B batch, S samples, V views, D teacher width, H W student input, C channels (3)

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from distill.config import DataConfig
from distill.data.augment import photometric, strongly
from distill.data.samples import Samples
from distill.data.schedule import CANONICAL, Request
from distill.data.stored_features import Features, Grid, StoredField
from distill.data.targets import Targets
from distill.losses import IGNORE
from featstore.errors import (
    ConfigError,
    DecodeError,
    MissingSamples,
    SourceError,
    shorten,
)
from featstore.files.array_types import Array
from featstore.format.ids import content_sha256
from featstore.format.pictures import full_size
from featstore.format.views import View
from featstore.sources.load import Frame, ViewRule, decode, read_image
from featstore.sources.loading import TIMEOUT_S, fit_workers, guarded


@dataclass(frozen=True)
class Pictures:
    """What a loading process returns."""

    pixels: Tensor  # (B, C, H, W) uint8; of other samples than images, their inputs
    requests: Tensor  # (B, 4) int64: sample, column, labelled and strong of each ``Request``
    # reasons why pictures could not be made; if there are any, ``pixels`` must not be used
    problems: list[str]
    changed: list[str]  # ids whose bytes are not those that the teacher saw
    # failure of the disk, the network or the memory; None if nothing failed
    failure: str | None = None
    # (L, ...) targets of the labelled requests, in their order; None if the task has none
    targets: Tensor | None = None


class PictureCache:
    """Decoded views, so that small sets are decoded once; shared by all data sets of one process."""

    def __init__(self, megabytes: int) -> None:
        self._room = megabytes * 2**20
        self._pictures: dict[tuple[int, int, int, int], tuple[np.ndarray[Any, Any], Frame]] = {}

    def get(
        self, request: Request, size: tuple[int, int]
    ) -> tuple[np.ndarray[Any, Any], Frame] | None:
        """(H, W, C) uint8 and its frame, or None if it is not here."""
        return self._pictures.get((request.sample, request.column, *size))

    def put(self, request: Request, pixels: np.ndarray[Any, Any], frame: Frame) -> None:
        """Keep a view while there is room."""
        if self._room >= pixels.nbytes:
            self._room -= pixels.nbytes
            self._pictures[request.sample, request.column, *pixels.shape[:2]] = pixels, frame


class ViewDataset(torch.utils.data.Dataset[Pictures]):
    """Pictures by request. The loader asks for a whole batch at once through ``__getitems__``.

    Args:
        rule: Rule that gives the region of an image that is shown.
        size: (H, W) of the student's input.
        changes: Photometric changes of every picture, and those of strong copies; None changes nothing.
        targets: Targets of the task, made for the labelled requests; None makes none.
        reduced: Decode JPEGs at a smaller scale where a view needs no more (``--data.decode reduced``).
    """

    def __init__(
        self,
        samples: Samples,
        rule: ViewRule,
        *,
        size: tuple[int, int],
        changes: "Callable[[Array, Request], Array] | None" = None,
        cache: PictureCache | None = None,
        targets: Targets | None = None,
        reduced: bool = False,
    ) -> None:
        self.targets = targets
        self.reduced = reduced
        self.samples = samples
        self.rule = rule
        self.size = size
        self.changes = changes
        self.cache = PictureCache(0) if cache is None else cache

    def __len__(self) -> int:
        return len(self.samples.ids)

    @property
    def row_bytes(self) -> int:
        return 3 * self.size[0] * self.size[1]

    def __getitem__(self, request: Request) -> Pictures:
        """One picture, as a batch of one."""
        return self.__getitems__([request])

    def __getitems__(self, requests: Sequence[Request]) -> Pictures:
        """Make a batch of pictures; failures are returned, so that the message is not a worker's traceback."""
        pixels = self.blank(len(requests))
        problems: list[str] = []
        changed: list[str] = []
        failure = None
        targets: list[Tensor] = []
        for place, request in enumerate(requests):
            try:
                view, frame = self._view(request, changed)
                if self.targets is not None and request.labelled:
                    targets.append(torch.as_tensor(self.targets.of(request.sample, frame)))
            except SourceError as error:
                failure = str(error)
                break
            except (DecodeError, OSError) as error:
                problems.append(f"{self.samples.ids[request.sample]} ({error})")
            else:
                pixels[place] = view if self.changes is None else self.changes(view, request)
        return Pictures(
            self.as_tensor(pixels),
            request_table(requests),
            problems,
            changed,
            failure,
            torch.stack(targets) if targets else None,
        )

    def blank(self, count: int) -> Array:
        """(B, H, W, C) uint8."""
        return np.zeros((count, *self.size, 3), np.uint8)

    def as_tensor(self, pixels: Array) -> Tensor:
        """(B, C, H, W). Channels stay innermost in memory: nothing is copied, and convolutions run faster so."""
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _view(self, request: Request, changed: list[str]) -> tuple[Array, Frame]:
        known = self.cache.get(request, self.size)
        if known is not None:
            return known
        samples = self.samples
        row = int(samples.positions[request.sample])
        data = read_image(samples.source, row)
        copies = samples.source.content_sha256 is not None
        if (
            samples.hashes is not None
            and not copies  # compared when rows were joined
            and samples.hashes[request.sample].any()  # zeros: the store does not know the bytes
            and content_sha256(data) != samples.hashes[request.sample].tobytes()
        ):
            changed.append(samples.ids[request.sample])
        pixels, frame = self.cut(request, data)
        self.cache.put(request, pixels, frame)
        return pixels, frame

    def cut(self, request: Request, data: bytes) -> tuple[Array, Frame]:
        """Decode one image and cut its view: (H, W, C) uint8 and its frame."""
        source = self.samples.source
        shown = full_size(data) if source.content_sha256 is not None else None
        seen: list[tuple[int, int]] = []

        def least_size(width: int, height: int) -> tuple[int, int]:
            seen.append((width, height))
            return self._frame(request, shown or (width, height)).least_size

        image = decode(
            source,
            int(self.samples.positions[request.sample]),
            data,
            least=least_size if self.reduced else None,
        )
        size = seen[0] if seen else image.size
        frame = self._frame(request, shown or size)
        return self.rule.cut_frame(image, frame, whole=unrounded(size, image.width)), frame

    def _frame(self, request: Request, size: tuple[int, int]) -> Frame:
        """The frame of a view in an image of (width, height)."""
        view = (
            View(kind="canonical")
            if request.column == CANONICAL
            else self.rule.views.views[request.column]
        )
        sample_id = self.samples.stored_ids[request.sample]
        return self.rule.frame(size[::-1], view, sample_id=sample_id, size=self.size)


def unrounded(size: tuple[int, int], width: int) -> tuple[float, float]:
    """Sides of a picture at the JPEG scale at which it became ``width`` wide; JPEG rounds them up."""
    scale = next(scale for scale in (1, 2, 4, 8) if math.ceil(size[0] / scale) == width)
    return size[0] / scale, size[1] / scale


def request_table(requests: Sequence[Request]) -> Tensor:
    """(B, 4) int64: sample, column, labelled and strong of each request."""
    table = [
        (request.sample, request.column, int(request.labelled), request.strong)
        for request in requests
    ]
    return torch.from_numpy(np.array(table, np.int64).reshape(-1, 4))


class Changes:
    """Change a cut picture: photometrically, or strongly for the copies of a partner."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def __call__(self, pixels: np.ndarray[Any, Any], request: Request) -> np.ndarray[Any, Any]:
        """(H, W, C) uint8 -> the same shape; a pure function of the picture and the request."""
        if request.strong:
            return strongly(pixels, self.config.strong, request.draw)
        return photometric(pixels, self.config, request.draw) if request.draw else pixels


def _same(pictures: Any) -> Any:
    """Collate function: ``__getitems__`` has collated already. At module level, so that it can be pickled."""
    return pictures


class Batches(Protocol):
    """What the loader needs of a sampler."""

    def __iter__(self) -> Iterator[list[Request]]: ...


def load_batches(
    dataset: ViewDataset, batches: Batches | Sequence[list[Request]], *, workers: int
) -> Iterator[Pictures]:
    """Make batches, in order, with or without further processes, and stop at the first that is not what it should be.

    Raises:
        MissingSamples: the bytes of an image are not those that the teacher saw.
        ConfigError: an image that the store knows as valid cannot be read or decoded here.
        SourceError: the disk, the network or the memory failed while an image was read, or a loading process ended.
    """
    first = next(iter(batches), [])
    workers = fit_workers(workers, batch_bytes=len(first) * dataset.row_bytes, tensors=2)
    made: Iterable[Pictures] = map(dataset.__getitems__, batches)
    if workers:
        made = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            timeout=TIMEOUT_S,
            collate_fn=_same,
            # A generator of its own: starting the loader would move the global one, and a resumed run differ.
            generator=torch.Generator().manual_seed(0),
        )
    where = dataset.samples.source.uri
    for pictures in guarded(made):
        if pictures.failure is not None:
            raise SourceError(pictures.failure)
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
    """One piece of a step, on the device: B labelled and unlabelled images, in this order, then strong copies."""

    # (B + S U, C, H, W) float32, normalised; S strong copies of each of the U unlabelled images come last
    images: Tensor
    labels: Tensor  # (B,) int64; ``IGNORE`` where the label is unknown or must not be used
    # (B, D) float32 stored vectors of the very same views; None if no method needs them
    teacher: Tensor | None
    # (B, g, g, D) float32 stored patch grids of the very same views; None if no method needs them
    grid: Tensor | None
    indices: Tensor  # (B,) int64 in ``Samples``, on the CPU
    num_labelled: int  # L
    num_unlabelled: int  # U
    num_strong: int  # S
    # (L, ...) targets of the labelled images, which come first; None if the task's labels are classes
    targets: Tensor | None = None
    # (B, *shape) float32 of further stored fields of the very same views, by name
    fields: Mapping[str, Tensor] = field(default_factory=dict)


class BatchMaker:
    """Turns pictures into a batch on the device."""

    def __init__(
        self,
        samples: Samples,
        features: Features | None = None,
        grid: Grid | None = None,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        fields: Mapping[str, StoredField] | None = None,
    ) -> None:
        self._fields = fields or {}
        self._labels = samples.labels
        self._features = features
        self._grid = grid
        self._mean, self._std = (torch.tensor(value, device=device) for value in (mean, std))
        self.device = device

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 anywhere -> float32 on the device, normalised; other inputs stay as they are."""
        if pixels.dtype != torch.uint8:
            return pixels.to(self.device, non_blocking=True)
        # By rows of pixels, in which the channels lie innermost: a quarter of the time on a CPU, the same bits.
        rows = pixels.to(self.device, non_blocking=True).permute(0, 2, 3, 1).flatten(2).float()
        mean, std = (value.repeat(pixels.shape[3]) for value in (self._mean, self._std))
        rows.div_(255).sub_(mean).div_(std)
        return rows.view(*rows.shape[:2], pixels.shape[3], -1).permute(0, 3, 1, 2)

    def __call__(self, pictures: Pictures) -> Batch:
        """Add labels, and what is stored of the same views."""
        requests = pictures.requests.numpy()  # faster than torch on few numbers
        strong = requests[:, 3]
        plain = requests[strong == 0]
        indices, columns, labelled, _ = plain.T.copy()
        labels = torch.from_numpy(np.where(labelled, self._labels[indices], IGNORE))
        count = int(labelled.sum())
        stored = [
            None if part is None else part.take(indices, columns).to(self.device, non_blocking=True)
            for part in (self._features, self._grid)
        ]
        return Batch(
            images=self.normalise(pictures.pixels),
            labels=labels.to(self.device),
            teacher=stored[0],
            grid=stored[1],
            indices=torch.from_numpy(indices),
            num_labelled=count,
            num_unlabelled=len(plain) - count,
            num_strong=int(strong.max()) if len(strong) else 0,
            targets=None if pictures.targets is None else pictures.targets.to(self.device),
            fields={
                name: stored.read(indices, columns[:, None])[:, 0].to(self.device)
                for name, stored in self._fields.items()
            },
        )
