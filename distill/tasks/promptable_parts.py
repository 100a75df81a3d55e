"""The head of students of task ``promptable``, and the prompts that are drawn and decoded in a step."""

# B images, K objects, P prompts of an image, D g width and side of the embedding, H W sides of the student's input

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.masks import (
    draw_objects,
    draw_points,
    enlarge,
    innermost,
    intersection_over_union,
    mask_losses,
)
from distill.student.model import Student
from distill.tasks.prompt_decoder import DecodedMasks, PromptDecoder

DECODED = 16
"""Images that are decoded at a time when students are measured."""


class Prompted(NamedTuple):
    """Prompts of the labelled images of a batch, and what the decoder makes of the student's embedding there."""

    points: Tensor
    """(B, P, 2) from -0.5 to 0.5."""
    truth: Tensor
    """(B, P, H, W) bool, the object under each point."""
    valid: Tensor
    """(B, P) bool; False where an image shows no object."""
    masks: DecodedMasks

    def losses(self) -> dict[str, Tensor]:
        return mask_losses(self.masks.logits, self.masks.iou, self.truth, self.valid)


class PromptableHead(nn.Module):
    """From the maps of a student to the teacher's embedding, (B, D, g, g).

    Each map goes through a 1x1 convolution and is resized to g x g; their sum goes through a 3x3 convolution.

    Args:
        student: Gives its widths; its maps are those of its stages where it has them.
        width: D.
        side: g.
    """

    def __init__(self, student: Student, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.stages = bool(student.stage_channels)
        channels = student.stage_channels or (student.map_channels,)
        self.project = nn.ModuleList(nn.Conv2d(item, width, 1) for item in channels)
        self.smooth = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, features: Tensor, last: Tensor, stages: tuple[Tensor, ...]) -> Tensor:
        """(B, C) feature, (B, M, h, w) map, maps of the stages -> (B, D, g, g)."""
        maps = stages if self.stages else (last,)
        size = (self.side, self.side)
        parts = [
            F.interpolate(project(item), size=size, mode="bilinear", align_corners=False)
            for project, item in zip(self.project, maps, strict=True)
        ]
        return self.smooth(torch.stack(parts).sum(0))  # type: ignore[no-any-return]


class Prompter:
    """Draws prompts and decodes masks with the frozen decoder of the teacher.

    Args:
        objects: K.
        overlap: Whether bit k of a pixel's value says that object k covers it; otherwise value k + 1 does.
        prompts: P.
        rounds: A prompt is moved at most ``rounds`` - 1 times into what the student's mask leaves out.
    """

    def __init__(
        self, decoder: PromptDecoder, *, objects: int, overlap: bool, prompts: int, rounds: int
    ) -> None:
        self.decoder = decoder
        self.objects, self.overlap = objects, overlap
        self.prompts, self.rounds = prompts, rounds
        self._last: tuple[Tensor, Prompted] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Prompter":
        """The same: copies of a student share the frozen decoder."""
        return self

    def decode(self, embedding: Tensor, points: Tensor) -> DecodedMasks:
        """See ``PromptDecoder``; the decoder follows the embedding to its device."""
        return self.decoder.to(embedding.device)(embedding, points)  # type: ignore[no-any-return]

    def masks(self, targets: Tensor) -> Tensor:
        """(B, H, W) values of mask images -> (B, K, H, W) bool."""
        values, number = targets.long()[:, None], torch.arange(self.objects, device=targets.device)
        number = number[:, None, None]
        return (values >> number) % 2 == 1 if self.overlap else values == number + 1

    def prompt(self, embedding: Tensor, targets: Tensor) -> Prompted:
        """Draw objects and points, and decode them; the same answer for the same embedding of a step.

        Args:
            embedding: (B, D, g, g) of the student; the labelled images come first.
            targets: (L, H, W) of the labelled images.
        """
        if self._last is not None and self._last[0] is embedding:
            return self._last[1]
        own = embedding[: len(targets)]
        truth, valid = draw_objects(self.masks(targets), self.prompts)
        points = draw_points(truth)
        for _ in range(int(torch.randint(self.rounds, ()))):
            with torch.no_grad():
                found = enlarge(self.decode(own.detach(), points).logits, truth) > 0
            points = draw_points(truth & ~found, otherwise=truth)
        found_now = Prompted(points, truth, valid, self.decode(own, points))
        self._last = embedding, found_now
        return found_now

    @torch.no_grad()
    def ious(self, embedding: Tensor, targets: Tensor) -> Tensor:
        """(B, K) intersection over union of the mask at each object's innermost point; NaN where it is not shown."""
        parts = []
        for rows, values in zip(embedding.split(DECODED), targets.split(DECODED), strict=True):
            truth = self.masks(values)
            found = enlarge(self.decode(rows, innermost(truth)).logits, truth) > 0
            there = truth.any(dim=3).any(dim=2)
            parts.append(torch.where(there, intersection_over_union(found, truth), torch.nan))
        return torch.cat(parts)
