"""Pictures of targets and of a student's outputs, for the page of a run."""

# B images, K masks or points, H W sides of the student's input, s enlargement

import colorsys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_PX = 160
"""Small pictures are enlarged to about this height, so that thin masks and single points can be seen."""
DOT_PX = 3


def enlarge(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 pictures or (B, K, H, W) bool masks, each pixel repeated s times in both directions."""
    times = max(1, LEAST_PX // pictures.shape[-2])
    return pictures.repeat_interleave(times, -2).repeat_interleave(times, -1)


def paint(pictures: Tensor, masks: Tensor) -> Tensor:
    """Colour masks, the largest first, so that those inside it stay visible.

    Args:
        pictures: (B, 3, H, W) uint8.
        masks: (B, K, H, W) bool; the k-th has the same colour in all pictures.
    """
    painted, colours = pictures.float(), palette(masks.shape[1], masks.device)
    order = masks.flatten(2).sum(2).argsort(dim=1, descending=True, stable=True)
    rows = torch.arange(len(masks), device=masks.device)
    for place in order.T:
        mask = masks[rows, place][:, None]
        painted = torch.where(mask, 0.5 * painted + 0.5 * colours[place][:, :, None, None], painted)
    return painted.round().to(torch.uint8)


def dots(pictures: Tensor, points: Tensor, colour: Sequence[int] = (255, 255, 255)) -> Tensor:
    """Draw points.

    Args:
        pictures: (B, 3, H, W) uint8.
        points: (B, K, 2) x and y from -0.5 to 0.5; those that are not finite or outside are left out.
    """
    height, width = pictures.shape[-2:]
    hit = torch.zeros(len(pictures), 1, height, width, device=pictures.device)
    size = torch.tensor([width, height], device=points.device)
    inside = torch.isfinite(points).all(2) & (points.abs() < 0.5).all(2)
    picture, point = inside.nonzero().unbind(1)
    x, y = ((points[picture, point] + 0.5) * size).long().unbind(1)
    hit[picture, 0, y, x] = 1
    hit = F.max_pool2d(hit, DOT_PX, stride=1, padding=DOT_PX // 2)
    fill = torch.tensor(colour, dtype=torch.uint8, device=pictures.device)[:, None, None]
    return torch.where(hit > 0, fill, pictures)


def palette(count: int, device: torch.device | str = "cpu") -> Tensor:
    """(K, 3) colours, from 0 to 255, whose hues are far apart for neighbours."""
    golden = (5**0.5 - 1) / 2
    found = [colorsys.hsv_to_rgb(k * golden % 1, 0.9, 1) for k in range(count)]
    return 255 * torch.tensor(found, device=device).reshape(count, 3)
