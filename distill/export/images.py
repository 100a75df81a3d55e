"""Which images calibrate int8 and which are held out to choose its settings, and pictures batch by batch."""

# B batch, H W student input, S images

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.data.joined import Data
from distill.data.pictures import Pictures, load_batches
from distill.data.samples import Samples, Split
from distill.data.schedule import CANONICAL, Indices, Request
from distill.export.config import CalibrationConfig
from distill.student.model import Student
from featstore.errors import ConfigError
from featstore.sources.base import NO_LABEL
from featstore.sources.load import ViewRule

Pixels = npt.NDArray[np.uint8]  # (B, 3, H, W) RGB
BATCH = 64  # pictures at a time


@dataclass(frozen=True)
class Draw:
    """Images for int8, as indices into ``Samples``; no test image and no copy of one is among them."""

    calibration: Indices  # that ranges are measured on
    held_out: Indices  # that settings are compared on
    notes: list[str] = field(default_factory=list)  # notes for the user


def draw_images(samples: Samples, part: Split, config: CalibrationConfig) -> Draw:
    """Draw from the training images, equally many of every class where labels are known, by a seed alone.

    Args:
        part: of the run; its labelled and unlabelled images are drawn from.
    """
    pool = np.union1d(part.labelled, part.unlabelled)
    if len(pool) < 2:
        raise ConfigError(
            f"{len(pool)} training images to calibrate on and to compare by, in {samples.source.uri}; expected "
            f"--calibration.images {config.images} and some more. Give the run's images with --images, or leave "
            "int8 out of --formats."
        )
    labels = samples.labels[pool]
    classes = np.unique(labels[labels != NO_LABEL])
    if len(classes) == 1 and samples.num_classes > 1 and NO_LABEL not in labels:
        name = samples.class_names[int(classes[0])]
        raise ConfigError(
            f"all {len(pool)} training images in {samples.source.uri} are of the class {name!r}, the student "
            f"has {samples.num_classes}. Ranges measured on one class do not hold for the others. Give images of "
            "all classes with --images, or leave int8 out of --formats."
        )
    order = pool[_in_turn(labels, config.seed)]
    # Too few for both: half and half.
    calibrating = min(config.images, (len(pool) + 1) // 2)
    notes = []
    if calibrating < config.images:
        notes.append(
            f"--calibration.images {config.images}: only {len(pool):,} training images; {calibrating} calibrate, "
            "the others choose"
        )
    held_out = order[calibrating : calibrating + config.held_out]
    return Draw(np.sort(order[:calibrating]), np.sort(held_out), notes)


def _in_turn(labels: npt.NDArray[np.int64], seed: int) -> Indices:
    """Return a round-robin order over the classes, shuffled by a seed within each class."""
    rank = np.zeros(len(labels), np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    for label in np.unique(labels):
        own = shuffled[labels[shuffled] == label]
        rank[own] = np.arange(len(own))
    # Within one round the classes come in a shuffled order too, so that a cut through a round favours none.
    place = np.empty(len(labels), np.int64)
    place[shuffled] = np.arange(len(labels))
    found: Indices = np.lexsort((place, rank))
    return found


def pictures(
    data: Data, student: Student, indices: Sequence[int] | Indices, *, rule: ViewRule, workers: int
) -> Iterator[Pixels]:
    """Canonical views at the student's size, in order.

    Raises:
        MissingSamples: the bytes of an image are not those that the teacher saw.
        ConfigError: an image cannot be read or decoded.
    """
    for batch in _views(data, student, indices, rule=rule, workers=workers, labelled=False):
        yield np.ascontiguousarray(batch.pixels.numpy())


def targets(
    data: Data, student: Student, indices: Sequence[int] | Indices, *, rule: ViewRule, workers: int
) -> Tensor:
    """Targets of images of a task that has some, in the views of ``pictures``; raises as that."""
    found = []
    for batch in _views(data, student, indices, rule=rule, workers=workers, labelled=True):
        assert batch.targets is not None, "the task has no targets"
        found.append(batch.targets)
    return torch.cat(found)


def _views(
    data: Data,
    student: Student,
    indices: Sequence[int] | Indices,
    *,
    rule: ViewRule,
    workers: int,
    labelled: bool,
) -> Iterator[Pictures]:
    requests = [Request(int(index), CANONICAL, 0, labelled) for index in indices]
    batches = [requests[start : start + BATCH] for start in range(0, len(requests), BATCH)]
    return load_batches(data.dataset(student, rule=rule), batches, workers=workers)
