"""Modules that partners add to the student; apart from the partners, so that those are read without torch."""

# B batch, C student width, E width of the embedding

from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.adaptation import reverse_gradient


class Discriminator(nn.Module):
    """(B, C) -> (B, 1) logits, positive for the source.

    Attributes:
        factor: the gradient that leaves it downwards is multiplied by minus this.
    """

    def __init__(self, from_width: int, width: int) -> None:
        super().__init__()
        self.factor = 0.0
        self.layers = nn.Sequential(
            nn.Linear(from_width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )

    def forward(self, feature_BC: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.layers(reverse_gradient(feature_BC, self.factor))
        return logits


class UnitEmbedding(nn.Module):
    """(B, student width) -> (B, E) float32 of length one."""

    def __init__(self, from_width: int, to_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(from_width, from_width), nn.ReLU(), nn.Linear(from_width, to_width)
        )

    def forward(self, feature_BC: Tensor) -> Tensor:
        """See the class."""
        return F.normalize(self.layers(feature_BC).float(), dim=1)
