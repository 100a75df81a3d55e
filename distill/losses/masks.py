"""Prompts for masks, losses of masks, and the weight of a mask that the student finds hard."""

# B images, K objects, P prompts of an image, h w sides of a decoded mask, H W sides of the true one

import torch
from torch import Tensor
from torch.nn import functional as F

ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss (Lin et al., ICCV 2017), as SAM uses it."""

EPSILON = 0.01
"""Added to the student's intersection over union in the weight of a mask."""


def draw_objects(masks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw objects of each image, with replacement.

    Args:
        masks: (B, K, H, W) bool.
        count: P.

    Returns:
        (B, P, H, W) bool, and (B, P) whether the image shows an object at all.
    """
    there = masks.any(dim=3).any(dim=2)
    none = ~there.any(dim=1, keepdim=True)
    chosen = torch.multinomial((there | none).float(), count, replacement=True)
    rows = torch.arange(len(masks), device=masks.device)[:, None]
    return masks[rows, chosen], there.gather(1, chosen)


def draw_points(masks: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """Draw a pixel of each mask.

    Args:
        masks: (B, P, H, W) bool.
        otherwise: As ``masks``: for masks without a pixel; where that has none, any pixel is drawn.

    Returns:
        (B, P, 2) x and y of the middle of the pixel, from -0.5 to 0.5.
    """
    height, width = masks.shape[2:]
    flat = masks.flatten(2)
    if otherwise is not None:
        flat = torch.where(flat.any(dim=2, keepdim=True), flat, otherwise.flatten(2))
    flat = flat | ~flat.any(dim=2, keepdim=True)
    pixel = torch.multinomial(flat.flatten(0, 1).float(), 1).reshape(masks.shape[:2])
    return middle_of(pixel, height, width)


def innermost(masks: Tensor) -> Tensor:
    """The pixel of each mask that is farthest from its edge (city blocks and diagonals), the first of several.

    Args:
        masks: (B, P, H, W) bool.

    Returns:
        (B, P, 2), see ``draw_points``.
    """
    depth, left = masks.int(), masks.float()
    while left.any():
        padded = F.pad(left, (1, 1, 1, 1))
        left = -F.max_pool2d(-padded, 3, stride=1)
        depth += left.int()
    return middle_of(depth.flatten(2).argmax(2), *masks.shape[2:])


def middle_of(pixel: Tensor, height: int, width: int) -> Tensor:
    """(...,) number of a pixel, row by row -> (..., 2) its middle from -0.5 to 0.5."""
    x, y = pixel % width + 0.5, pixel // width + 0.5
    return torch.stack([x / width, y / height], dim=-1) - 0.5


def enlarge(logits: Tensor, like: Tensor) -> Tensor:
    """(B, P, h, w) at the size of ``like``, bilinear."""
    if logits.shape[2:] == like.shape[2:]:
        return logits
    return F.interpolate(logits, size=like.shape[2:], mode="bilinear", align_corners=False)


def intersection_over_union(found: Tensor, truth: Tensor) -> Tensor:
    """(B, P, H, W) bool each -> (B, P) float32; 0 where both are empty."""
    both = (found & truth).sum((2, 3))
    either = (found | truth).sum((2, 3))
    return both.float() / either.clamp(min=1)


def mask_losses(logits: Tensor, iou: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Focal and dice loss of masks, and L1 of the estimated intersection over union; means over valid prompts.

    Args:
        logits: (B, P, h, w), enlarged to the size of ``truth``.
        iou: (B, P) estimates.
        truth: (B, P, H, W) bool.
        valid: (B, P) bool.
    """
    logits = enlarge(logits, truth).float()
    actual = intersection_over_union(logits > 0, truth)
    truth = truth.float()
    share = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    right = share * truth + (1 - share) * (1 - truth)
    focal = (ALPHA * truth + (1 - ALPHA) * (1 - truth)) * (1 - right) ** GAMMA * entropy
    dice = 1 - (2 * (share * truth).sum((2, 3)) + 1) / (share.sum((2, 3)) + truth.sum((2, 3)) + 1)
    return {
        "focal": mean_of(focal.mean((2, 3)), valid),
        "dice": mean_of(dice, valid),
        "iou": mean_of((iou.float() - actual).abs(), valid),
    }


def mean_of(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of (B, P) values over valid prompts; zero with a gradient if there are none."""
    return (values * valid).sum() / valid.sum().clamp(min=1)


def hardness(student: Tensor, teacher: Tensor, truth: Tensor) -> Tensor:
    """Weight H of each mask: sigmoid(IoU of the teacher / (IoU of the student + epsilon) - 1).

    Args:
        student: (B, P, h, w) logits of masks; no gradient flows through them.
        teacher: (B, P, h, w) logits.
        truth: (B, P, H, W) bool.

    Returns:
        (B, P).
    """
    own, other = (
        intersection_over_union(enlarge(logits.detach(), truth) > 0, truth)
        for logits in (student, teacher)
    )
    weight: Tensor = torch.sigmoid(other / (own + EPSILON) - 1)
    return weight
