"""``fixmatch``: the strong view learns the weak view's confident argmax (Sohn et al. 2020, arXiv:2001.07685).

    weight mean_u [max p_u >= 0.95] CE(z_strong, argmax p_u)

p_u is softmax of the weak view's logits, without gradient, and not sharpened (USB [C]).
"""

from torch import Tensor

from distill.config import DistillConfig
from distill.data.pictures import Batch
from distill.methods.base import Needs, Setup
from distill.partners.selftraining import TrustedGuess, label_needs


class FixMatch(TrustedGuess):
    """See the top of this file."""

    def __init__(self, setup: Setup) -> None:
        self.options = setup.config.fixmatch
        super().__init__(setup, weight=self.options.weight, labels_from=self.options.labels_from)

    @classmethod
    def needs(cls, config: DistillConfig) -> Needs:
        """See ``label_needs``."""
        return label_needs(config.fixmatch.labels_from)

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """1 from the threshold on."""
        return (probability_UK.amax(1) >= self.options.threshold).float()
