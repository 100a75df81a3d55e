"""``fixmatch``: the strong view learns the weak view's confident argmax (Sohn et al. 2020, arXiv:2001.07685).

    weight mean_u [max p_u >= 0.95] CE(z_strong, argmax p_u)

p_u is softmax of the weak view's logits, without gradient, and not sharpened (USB [C]).
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor
from distill.methods.base import Batch
from distill.options import LabelsFrom, not_negative, share
from distill.partners.selftraining import TrustedGuess


@dataclass(frozen=True, kw_only=True)
class FixMatchConfig:
    """Partner ``fixmatch``: the strong view learns the confident argmax of the weak one (Sohn et al. 2020)."""

    weight: float = 1.0
    """Weight of the term."""
    threshold: float = 0.95
    """Least probability of the guessed class [C]."""
    labels_from: LabelsFrom = "student"
    """student: guess on the weak view. probe: the linear probe on the stored feature [I]."""

    def __post_init__(self) -> None:
        not_negative("fixmatch", self, "weight")
        share("fixmatch", self, "threshold")


class FixMatch(TrustedGuess):
    """See the top of this file."""

    Options = FixMatchConfig
    options: FixMatchConfig

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """1 from the threshold on."""
        return (probability_UK.amax(1) >= self.options.threshold).float()
