"""Normalisation of stored features before they are compared with the student's."""

# B batch, D teacher width, C student width

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.options import Norm
from featstore.errors import ConfigError

EPS = 1e-6
"""Smallest standard deviation that ``standardize`` divides by; a constant channel stays constant."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of every channel of the stored feature."""

    mean_D: Tensor  # (D,) float32
    std_D: Tensor  # (D,) float32


def measure_channels(chunks: Iterable[Tensor]) -> ChannelStatistics:
    """Compute the statistics of a feature in one pass, in float64.

    Args:
        chunks: (n, D) parts of the feature.
    """
    count, total, squares = 0, torch.zeros(0), torch.zeros(0)
    for chunk in chunks:
        part = chunk.double()
        count += len(part)
        total = part.sum(0) + (total if len(total) else 0)
        squares = part.square().sum(0) + (squares if len(squares) else 0)
    if count == 0:
        raise ConfigError(
            "norm standardize: there is no training row to take the mean and deviation from."
        )
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    return ChannelStatistics(mean.float(), variance.sqrt().float())


class Columns(NamedTuple):
    """One teacher's part of a feature that several teachers share."""

    width: int  # D_i
    weight: float  # w_i, above zero; only its share of the sum counts


class FeatureNorm(nn.Module):
    """Normalise the stored feature; without parameters, and always in float32.

    With several teachers each block is normalised on its own, then multiplied by s_i with
    s_i^2 = (w_i / sum w) D / D_i, so that MSE(s x, s y) = sum_i (w_i / sum w) MSE_i(x_i, y_i) whatever the widths.

    Args:
        statistics: Mean and deviation of all channels, for ``standardize``.
        blocks: Teachers' parts of the feature, from left to right; empty for one teacher.

    Raises:
        ConfigError: ``standardize`` without statistics.
    """

    mean_D: Tensor
    std_D: Tensor
    share_D: Tensor

    def __init__(
        self,
        kind: Norm,
        statistics: ChannelStatistics | None = None,
        blocks: Sequence[Columns] = (),
    ) -> None:
        super().__init__()
        self.kind = kind
        self.blocks = tuple(blocks)
        if kind == "standardize":
            if statistics is None:
                raise ConfigError("norm standardize needs the statistics of the training rows.")
            self.register_buffer("mean_D", statistics.mean_D)
            self.register_buffer("std_D", statistics.std_D.clamp(min=EPS))
        if len(self.blocks) > 1:
            self.register_buffer("share_D", shares(self.blocks))

    def forward(self, feature_BD: Tensor) -> Tensor:
        """(B, D) of any float dtype -> (B, D) float32."""
        feature = feature_BD.float()
        if len(self.blocks) <= 1:
            return self._normalise(feature)
        if self.kind in ("none", "standardize"):  # channel by channel: blocks do not matter
            return self._normalise(feature) * self.share_D
        parts = feature.split([block.width for block in self.blocks], dim=1)
        return torch.cat([self._normalise(part) for part in parts], dim=1) * self.share_D

    def _normalise(self, feature: Tensor) -> Tensor:
        if self.kind == "standardize":
            return (feature - self.mean_D) / self.std_D
        if self.kind == "layernorm":
            return F.layer_norm(feature, feature.shape[1:])
        if self.kind == "l2":
            return F.normalize(feature, dim=1)
        return feature


def shares(blocks: Sequence[Columns]) -> Tensor:
    """s_i of every channel, (D,) float32; see ``FeatureNorm``."""
    width = sum(block.width for block in blocks)
    weight = sum(block.weight for block in blocks)
    return torch.cat(
        [
            torch.full((block.width,), (block.weight / weight * width / block.width) ** 0.5)
            for block in blocks
        ]
    )
