"""Task ``promptable``: the student takes the place of a SAM's image encoder; a point then gives the mask under it.

The student's output is the embedding, which the teacher's prompt encoder and mask decoder turn into masks. Both are an
artefact of the store, frozen, and run in every step; the teacher's image encoder is never built.
"""

# L labelled images of a batch, B of any part, N test images, K objects, D g width and side of the embedding

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.lazy import Tensor, nn, torch
from distill.measures.score import Measure, record
from distill.options import CheckedOptions
from distill.tasks.base import Task
from featstore.errors import ConfigError
from featstore.sources.config import require

if TYPE_CHECKING:
    from distill.config import DistillConfig
    from distill.data.joined import Data
    from distill.data.pictures import Batch
    from distill.data.samples import Samples, Split
    from distill.data.targets import Targets
    from distill.evaluation.evaluate import Evaluation, Viewer
    from distill.measures.linear_probe import LinearProbe
    from distill.methods.base import Output
    from distill.student.model import Student, StudentOutput

MOST_OBJECTS = 16
"""Bits of a pixel of a PNG."""


@dataclass(frozen=True, kw_only=True)
class PromptableConfig(
    CheckedOptions, name="promptable", positive=("prompts", "rounds", "focal", "dice")
):
    """Task ``promptable``: masks by points, with the mask decoder of a SAM."""

    masks: str = ""
    """Folder with a mask image of each image under the image's own path and name, with any image ending."""
    member: str = ""
    """In place of a folder, masks beside the images; see --segment.member."""
    objects: list[str] = field(default_factory=list)
    """Names of the objects that masks show."""
    overlap: bool = False
    """A pixel's value is the sum of 2^k over the objects k (from 0) that cover it; otherwise it is k + 1 of its only
    object, 0 without one."""
    decoder: str = "mask_decoder"
    """Artefact of the store with the teacher's prompt encoder and mask decoder."""
    prompts: int = 4
    """Objects of each labelled image that get a point in a step."""
    rounds: int = 1
    """Hard prompts: a point is moved 0 to rounds - 1 times (drawn for each batch) to a pixel of its object that the
    student's mask leaves out; TinySAM has 10. 1 takes any pixel of the object."""
    focal: float = 20.0
    """Weight of the focal loss, as in SAM."""
    dice: float = 1.0
    """Weight of the dice loss."""
    iou: float = 1.0
    """Weight of the absolute error of the estimated intersection over union."""
    side: int = 0
    """Places of the embedding a side; 0 takes that of the store."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.masks and self.member),
            f"--promptable.masks {self.masks} and --promptable.member {self.member} exclude each other.",
        )
        require(
            len(self.objects) <= MOST_OBJECTS,
            f"--promptable.objects names {len(self.objects)} objects; at most {MOST_OBJECTS}.",
        )


class Promptable(Task):
    """Focal and dice loss at points; the mean intersection over union at one point per object counts."""

    name = "promptable"
    Options = PromptableConfig
    options: PromptableConfig
    measures = (Measure("miou", "mIoU at one point"), Measure("teacher.miou", "teacher, mIoU"))
    methods = ("labels", "tinysam")
    own_head = True
    draws = True
    kind = "mask-generation"
    meaning = "the image embedding, in place of that of the teacher's image encoder; its mask decoder makes masks of it"

    def __init__(self, config: DistillConfig, data: Data, options: Any = None) -> None:
        from distill.data.joined import JoinedData
        from distill.tasks.prompt_decoder import read_decoder
        from distill.tasks.promptable_parts import Prompter

        super().__init__(config, data, options)
        if not isinstance(data, JoinedData):
            raise ConfigError(
                "--task promptable: masks are made by the decoder in the feature store, which was not given. Give "
                "--store."
            )
        self.grid = data.grid
        decoder = read_decoder(
            data.store, self.options.decoder, grid=self.grid, setting="--promptable.decoder"
        )
        self.options = dataclasses.replace(self.options, side=self.grid.side)
        self.prompter = Prompter(
            decoder,
            objects=len(self.options.objects),
            overlap=self.options.overlap,
            prompts=self.options.prompts,
            rounds=self.options.rounds,
        )

    @property
    def num_outputs(self) -> int:
        return self.grid.width

    def label_names(self) -> Sequence[str]:
        return self.options.objects

    @classmethod
    def head(cls, student: Student, outputs: int, options: PromptableConfig) -> nn.Module:
        from distill.tasks.promptable_parts import PromptableHead

        return PromptableHead(student, outputs, options.side)

    def student(self, seed: int = 0) -> Student:
        """Build a student whose head gives methods the prompter of the task."""
        student = super().student(seed)
        # In a tuple: the decoder is frozen and no part of the student.
        student.task_head.prompter = (self.prompter,)  # type: ignore[union-attr]
        return student

    def targets(self, samples: Samples) -> Targets:
        """Mask images."""
        from distill.tasks.segment_parts import open_masks

        options = self.options
        if not options.objects:
            raise ConfigError(
                "--task promptable needs --promptable.objects: the names of the objects of the masks, e.g. '[face, "
                "eyes]'."
            )
        count = len(options.objects)
        masks = open_masks(
            self.config.source,
            samples,
            folder=options.masks,
            member=options.member,
            classes=2**count if options.overlap else count + 1,
            ignore=0,
            task=self.name,
        )
        masks.check_some(samples)
        return masks

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Of one mask for each prompt."""
        if batch.targets is None:
            return {"dice": 0 * output.logits.float().sum()}
        found = self.prompter.prompt(output.logits, batch.targets).losses()
        return {name: getattr(self.options, name) * value for name, value in found.items()}

    def take(self, seen: StudentOutput, targets: Tensor | None) -> Sequence[Tensor]:
        """(B, K) intersection over union, NaN for objects that are not shown."""
        assert targets is not None
        return [self.prompter.ious(seen.logits, targets)]

    def draw(self, pixels: Tensor, seen: StudentOutput, targets: Tensor) -> Tensor:
        """The true masks with a prompt in each, and the masks that the student gives at the same prompts."""
        from distill.losses import masks
        from distill.tasks.drawing import dots, enlarge, paint

        truth = self.prompter.masks(targets)
        points = masks.innermost(truth)
        found = masks.enlarge(self.prompter.decode(seen.logits, points).logits, truth) > 0
        there = truth.any(dim=3).any(dim=2)
        points = torch.where(there[..., None], points, torch.nan)
        pictures = [
            dots(paint(enlarge(pixels), enlarge(shown)), points)
            for shown in (truth, found & there[..., None, None])
        ]
        return torch.cat(pictures, dim=3)

    def numbers(self, *kept: Tensor) -> dict[str, Any]:
        """Mean over all masks of all test images, and over those of each object."""
        (found,) = kept
        if not torch.isfinite(found).any():
            raise ConfigError("--task promptable: no test image shows an object.")
        return {
            "miou": float(torch.nanmean(found.double())),
            "per_object_iou": {
                name: float(torch.nanmean(column.double()))
                if torch.isfinite(column).any()
                else None
                for name, column in zip(self.options.objects, found.T, strict=True)
            },
        }

    def errors(self, *kept: Tensor) -> npt.NDArray[np.float64]:
        """(N,) 1 less the mean intersection over union of the image's objects."""
        found: npt.NDArray[np.float64] = 1 - torch.nanmean(kept[0].double(), dim=1).numpy()
        return found

    def measure(
        self, viewer: Viewer, student: Student, part: Split, *, seed: int, probe: LinearProbe | None
    ) -> Evaluation:
        """Measure the student, and the stored embeddings of the same images in the same way."""
        found = super().measure(viewer, student, part, seed=seed, probe=probe)
        targets = viewer.targets(student, part.test)
        ious = []
        for start in range(0, len(part.test), viewer.settings.batch_size):
            rows = slice(start, start + viewer.settings.batch_size)
            stored = self.grid.take(part.test[rows]).permute(0, 3, 1, 2)
            device = viewer.accelerator.device
            ious.append(self.prompter.ious(stored.to(device), targets[rows].to(device)).cpu())
        found.result["teacher"] = self.numbers(torch.cat(ious))
        return found

    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        """The score beside that of the teacher's own embeddings."""
        return record(
            result, self.measures, ("teacher, mIoU at one point", float(result["teacher"]["miou"]))
        )
