"""All masks of an image without a prompt: points on a coarse grid, then on a fine one where nothing sure was found.

Hierarchical everything mode of TinySAM (Shu et al., AAAI 2025): a mask is sure where its stability or its estimated IoU
is high; points of the fine grid inside a sure mask are left out. How sure a mask must be, is ours.
"""

# P points, D g width and side of the embedding, h w sides of a mask, M masks that are kept

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.masks import intersection_over_union
from distill.tasks.prompt_decoder import PromptDecoder

AT_A_TIME = 64
"""Points that are decoded at a time."""


@dataclass(frozen=True)
class FoundMasks:
    """Masks of one image, the surest first."""

    masks: Tensor  # (M, h, w) bool
    iou: Tensor  # (M,) as the decoder estimates it
    points: Tensor  # (M, 2) the prompts, from -0.5 to 0.5
    num_prompts: int  # points that were decoded


@torch.no_grad()
def everything(
    decoder: PromptDecoder,
    embedding: Tensor,
    *,
    coarse: int = 8,
    fine: int = 32,
    sure: float = 0.85,
    least: float = 0.7,
    overlap: float = 0.7,
) -> FoundMasks:
    """Find masks at the points of two grids.

    Args:
        embedding: (D, g, g) of one image.
        coarse: Points a side of the first grid.
        fine: Points a side of the second grid; 0 leaves it out.
        sure: Estimated IoU above which points of the second grid inside a mask are left out.
        least: Estimated IoU below which a mask is left out.
        overlap: Intersection over union with a surer mask above which a mask is left out.
    """
    points = grid_points(coarse).to(embedding.device)
    masks, iou = _decode(decoder, embedding, points)
    if fine:
        covered = masks[iou > sure].any(dim=0)
        further = grid_points(fine).to(embedding.device)
        height, width = covered.shape
        x, y = (further + 0.5).unbind(1)
        further = further[~covered[(y * height).long(), (x * width).long()]]
        if len(further):
            more = _decode(decoder, embedding, further)
            masks, iou = torch.cat([masks, more[0]]), torch.cat([iou, more[1]])
            points = torch.cat([points, further])
    kept = distinct(masks, iou, least=least, overlap=overlap)
    return FoundMasks(masks[kept], iou[kept], points[kept], len(points))


def grid_points(side: int) -> Tensor:
    """(side^2, 2) middles of the cells of a grid, from -0.5 to 0.5, row by row."""
    middle = (torch.arange(side) + 0.5) / side - 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def distinct(masks: Tensor, iou: Tensor, *, least: float, overlap: float) -> Tensor:
    """Numbers of the masks that are sure enough and differ from all surer ones, the surest first."""
    kept: list[int] = []
    for number in iou.argsort(descending=True, stable=True).tolist():
        if iou[number] < least or not masks[number].any():
            continue
        others = masks[kept]
        shared = intersection_over_union(others[None], masks[number].expand_as(others)[None])[0]
        if not (shared > overlap).any():
            kept.append(number)
    return torch.tensor(kept, dtype=torch.int64, device=masks.device)


def _decode(decoder: PromptDecoder, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    parts = [decoder(embedding[None], part[None]) for part in points.split(AT_A_TIME)]
    masks = torch.cat([part.logits[0] > 0 for part in parts])
    return masks, torch.cat([part.iou[0] for part in parts])
