"""``dann``: a discriminator of source and target behind a reversed gradient (Ganin et al. 2016, arXiv:1505.07818).

    weight 0.5 (BCE(d(f_source), 1) + BCE(d(f_target), 0)),   d = 256-256-1 with batch norm and ReLU     (DeepDA [C])

The student gets the gradient times -(2 / (1 + exp(-gamma p)) - 1), p = 0 to 1 over training. The discriminator sees
both domains in one pass, so its batch norm has one set of statistics; DeepDA calls it once per domain. It looks at the
student's feature; no bottleneck is added.
"""

# B batch, C student width

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from distill.data.pictures import Batch
from distill.losses.adaptation import domain_bce, ramp, reverse_gradient
from distill.methods.base import Output, Setup, Side
from distill.partners.base import Partner
from distill.partners.progress import Progress
from distill.student.model import Student

SIDE = "dann"


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


class DANN(Partner):
    """See the top of this file."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = setup.config.dann
        self.discriminator = Discriminator(setup.student_width, self.options.width)
        self.progress = Progress(setup)
        self.memory["calls"] = self.progress.count

    def student_sides(self) -> dict[str, Side]:
        """The discriminator."""
        return {SIDE: Side(self.discriminator)}

    def loss(
        self,
        labelled: Output,
        weak: Output,
        strong: Sequence[Output],
        batch: Batch,
        student: Student,
    ) -> dict[str, Tensor]:
        """See ``Partner.loss``."""
        bce = domain_bce(labelled.projected[SIDE], weak.projected[SIDE])
        self.progress.advance()
        self._set_factor()
        return {"domain": self.options.weight * bce}

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Part.load_state``."""
        super().load_state(state)
        self._set_factor()

    def _set_factor(self) -> None:
        """Set the factor of the next forward pass."""
        self.discriminator.factor = ramp(self.progress.share, self.options.gamma)
