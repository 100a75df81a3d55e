"""Task ``segment``: a class for every pixel, from mask images, by a small decoder over the student's maps."""

# L labelled images of a batch, B of any part, N test images, K classes, H W sides of the student's input

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.lazy import F, Tensor, nn, torch
from distill.measures.score import Measure
from distill.options import CheckedOptions
from distill.tasks.base import Task
from featstore.errors import ConfigError
from featstore.sources.config import require

if TYPE_CHECKING:
    from distill.data.pictures import Batch
    from distill.data.samples import Samples
    from distill.data.targets import Targets
    from distill.methods.base import Output
    from distill.student.model import Student, StudentOutput


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(CheckedOptions, name="segment", positive=("weight", "width")):
    """Task ``segment``: masks are images of one channel whose values are class numbers."""

    masks: str = ""
    """Folder with the mask of each image under the image's own path and name, with any image ending."""
    member: str = ""
    """In place of a folder, masks beside the images. tars: extension of the mask's member, e.g. seg.png. folder: what
    takes the place of the image's ending, e.g. _mask.png."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes 0, 1, 2, ..."""
    ignore: int = 255
    """Value of pixels without a class; they neither teach nor count."""
    weight: float = 1.0
    """Weight of the cross entropy."""
    width: int = 128
    """Channels of the decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.masks and self.member),
            f"--segment.masks {self.masks} and --segment.member {self.member} exclude each other.",
        )
        require(
            not 0 <= self.ignore < len(self.classes),
            f"--segment.ignore {self.ignore} is the number of the class {self.classes[self.ignore : self.ignore + 1]}.",
        )


class Segment(Task):
    """Cross entropy per pixel; the mean intersection over union on the test part counts."""

    name = "segment"
    Options = SegmentConfig
    options: SegmentConfig
    measures = (Measure("miou", "mIoU"), Measure("pixel_accuracy", "pixel accuracy"))
    own_head = True
    draws = True
    kind = "image-segmentation"
    meaning = (
        "one map per class at the size of the input; at each pixel the largest value is the answer"
    )

    @property
    def num_outputs(self) -> int:
        if len(self.options.classes) < 2:
            raise ConfigError(
                "--task segment needs --segment.classes: the names of the classes 0, 1, 2, ... of the masks, e.g. "
                "'[background, face]'."
            )
        return len(self.options.classes)

    def label_names(self) -> Sequence[str]:
        return self.options.classes

    @classmethod
    def head(cls, student: Student, outputs: int, options: SegmentConfig) -> nn.Module:
        from distill.tasks.segment_parts import SegmentHead

        return SegmentHead(student, outputs, width=options.width)

    def targets(self, samples: Samples) -> Targets:
        """Masks of the images.

        Raises:
            ConfigError: no mask is found, or one has another size than its image or an unknown value.
        """
        from distill.tasks.segment_parts import open_masks

        options = self.options
        masks = open_masks(
            self.config.source,
            samples,
            folder=options.masks,
            member=options.member,
            classes=self.num_outputs,
            ignore=options.ignore,
        )
        masks.check_some(samples)
        return masks

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Mean over the pixels with a class."""
        assert batch.targets is not None
        masks = batch.targets.long()
        total = F.cross_entropy(
            output.logits[: batch.num_labelled].float(),
            masks,
            ignore_index=self.options.ignore,
            reduction="sum",
        )
        known = (masks != self.options.ignore).sum()
        return {"pixels": self.options.weight * total / known.clamp(min=1)}

    def take(self, seen: StudentOutput, targets: Tensor | None) -> Sequence[Tensor]:
        """(B, K, K) pixels of each image by true and predicted class, at the student's size."""
        assert targets is not None
        classes = self.num_outputs
        truth, found = targets.long().flatten(1), seen.logits.argmax(1).flatten(1)
        known = truth != self.options.ignore
        cells = torch.where(known, truth * classes + found, classes**2)
        counts = torch.stack([torch.bincount(row, minlength=classes**2 + 1) for row in cells])
        return [counts[:, :-1].reshape(-1, classes, classes)]

    def draw(self, pixels: Tensor, seen: StudentOutput, targets: Tensor) -> Tensor:
        """The true classes and the student's; class 0, mostly the background, keeps its colours."""
        from distill.tasks.drawing import enlarge, paint

        number = torch.arange(1, self.num_outputs, device=pixels.device)[:, None, None]
        pictures = [
            paint(enlarge(pixels), enlarge(found[:, None] == number))
            for found in (targets.long(), seen.logits.argmax(1))
        ]
        return torch.cat(pictures, dim=3)

    def numbers(self, *kept: Tensor) -> dict[str, Any]:
        """Intersection over union of every class that truth or student know, over all test images, and its mean."""
        confusion = kept[0].sum(0).double().numpy()
        hit = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hit
        if not confusion.sum():
            raise ConfigError("--task segment: no pixel of a test image has a class.")
        values = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
        return {
            "miou": float(np.nanmean(values)),
            "pixel_accuracy": float(hit.sum() / confusion.sum()),
            "per_class_iou": {
                name: None if np.isnan(value) else float(value)
                for name, value in zip(self.options.classes, values, strict=True)
            },
        }

    def errors(self, *kept: Tensor) -> npt.NDArray[np.float64]:
        """(N,) share of wrong pixels."""
        right = kept[0].diagonal(dim1=1, dim2=2).sum(1)
        wrong = 1 - right / kept[0].sum((1, 2)).clamp(min=1)
        return wrong.double().numpy()
