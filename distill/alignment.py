"""What stands between the teacher's and the student's feature: one Linear each way, and normalisation."""

# B batch, D teacher width, C student width

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.config import Norm
from featstore.errors import ConfigError

EPS = 1e-6
"""Smallest standard deviation that ``standardize`` divides by; a constant channel stays constant."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every channel of the stored feature.

    Attributes:
        mean_D: (D,) float32.
        std_D: (D,) float32.
    """

    mean_D: Tensor
    std_D: Tensor


def measure(chunks: Iterable[Tensor]) -> Statistics:
    """Compute the statistics of a feature in one pass, in float64.

    Args:
        chunks: (n, D) parts of the feature.

    Raises:
        ConfigError: there is nothing to measure.
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
    return Statistics(mean.float(), variance.sqrt().float())


class FeatureNorm(nn.Module):
    """Normalise the stored feature; without parameters, and always in float32.

    Raises:
        ConfigError: ``standardize`` without statistics.
    """

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, kind: Norm, statistics: Statistics | None = None) -> None:
        super().__init__()
        self.kind = kind
        if kind == "standardize":
            if statistics is None:
                raise ConfigError("norm standardize needs the statistics of the training rows.")
            self.register_buffer("mean_D", statistics.mean_D)
            self.register_buffer("std_D", statistics.std_D.clamp(min=EPS))

    def forward(self, feature_BD: Tensor) -> Tensor:
        """(B, D) of any float dtype -> (B, D) float32."""
        feature = feature_BD.float()
        if self.kind == "standardize":
            return (feature - self.mean_D) / self.std_D
        if self.kind == "layernorm":
            return F.layer_norm(feature, feature.shape[1:])
        if self.kind == "l2":
            return F.normalize(feature, dim=1)
        return feature


def projection(from_width: int, to_width: int) -> nn.Linear:
    """One Linear; the sources speak of "one projection layer" [S], and nothing is known of its inside."""
    return nn.Linear(from_width, to_width)


def check_width(name: str, feature: Tensor, width: int) -> None:
    """Check that a feature is (B, width).

    Raises:
        ValueError: names the feature and both shapes.
    """
    if feature.dim() != 2 or feature.shape[1] != width:
        raise ValueError(f"{name}: shape {tuple(feature.shape)}; expected (B, {width}).")
