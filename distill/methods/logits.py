"""``logits``: the student's logits imitate those of a linear probe on the stored features, by squared error.

Ba & Caruana, NeurIPS 2014 ("Do deep nets really need to be deep?", arXiv:1312.6184).
"""

from torch import Tensor

from distill.losses.logits import logit_mse
from distill.methods.base import Setup
from distill.methods.probe_logits import ProbeLogits


class Logits(ProbeLogits):
    """L = CE(D_L) + weight MSE(z_s, probe(f_t)) over all images."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.weight = setup.config.logits.weight

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        """See ``ProbeLogits.compare``."""
        return self.weight * logit_mse(student_BK, target_BK)
