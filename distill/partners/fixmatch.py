"""``fixmatch``: the strong view learns the weak view's confident argmax (Sohn et al. 2020, arXiv:2001.07685).

    weight mean_u [max p_u >= 0.95] CE(z_strong, argmax p_u)

p_u is softmax of the weak view's logits, without gradient, and not sharpened (USB [C]).
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor
from distill.methods.base import Batch
from distill.options import CheckedOptions, LabelsFrom
from distill.partners.selftraining import TrustedGuess


@dataclass(frozen=True, kw_only=True)
class FixMatchConfig(CheckedOptions, name="fixmatch", share=("threshold",)):
    """Partner ``fixmatch``: the strong view learns the confident argmax of the weak one (Sohn et al. 2020)."""

    weight: float = 1.0
    """Weight of this partner's term beside the method's loss."""
    threshold: float = 0.95
    """Least probability at which a predicted class is trusted, 0 to 1."""
    labels_from: LabelsFrom = "student"
    """Where the label of an unlabelled image comes from: the student's prediction on the weak view (student), or the
    linear probe's on the stored feature (probe)."""


class FixMatch(TrustedGuess):
    """See the top of this file."""

    Options = FixMatchConfig
    options: FixMatchConfig

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """1 from the threshold on."""
        return (probability_UK.amax(1) >= self.options.threshold).float()
