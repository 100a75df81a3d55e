"""Loss that compares the relations between the tokens of one sample, as self-attention of queries, keys or values."""

# B samples, N tokens, C student width, D teacher width, H relation heads

import math
from typing import Literal

from distill.lazy import Tensor, torch
from distill.losses.common import check_axes

Compared = Literal["softmax", "scores"]
"""softmax: relations that sum to 1 over the tokens (the paper). scores: scaled products (the released code)."""


def token_relations(
    tokens_BND: Tensor, heads: int, compared: Compared = "softmax", mask_BN: Tensor | None = None
) -> Tensor:
    """(B, H, N, N) float32: A A^T / sqrt(D / H) of each of H equal parts A of the width, with or without softmax.

    Args:
        mask_BN: Whether a token belongs to its sample; others take no part in the softmax. None: all do.
    """
    width = tokens_BND.shape[-1]
    if width % heads:
        raise ValueError(f"token_relations: width {width} does not divide by {heads} heads.")
    parts = tokens_BND.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    scores: Tensor = parts @ parts.mT / math.sqrt(width // heads)
    if compared == "scores":
        return scores
    if mask_BN is not None:
        scores = scores.masked_fill(~mask_BN[:, None, None], torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def token_relation_mse(
    student_BNC: Tensor,
    target_BND: Tensor,
    *,
    heads: int,
    compared: Compared = "softmax",
    mask_BN: Tensor | None = None,
) -> Tensor:
    """(1 / H) sum_h MSE(R_t, R_s), R of ``token_relations``, over all pairs of tokens (Xu et al., NeurIPS 2022).

    No gradient flows into the target. The widths may differ, and so may the heads that the student attends with.
    """
    check_axes("token_relation_mse", "BNC BND", student_BNC, target_BND)
    own = token_relations(student_BNC, heads, compared, mask_BN)
    error = (own - token_relations(target_BND.detach(), heads, compared, mask_BN)).square()
    if mask_BN is None:
        return error.mean()
    pairs = (mask_BN[:, :, None] & mask_BN[:, None])[:, None]
    return (error * pairs).sum() / (heads * pairs.sum()).clamp(min=1)
