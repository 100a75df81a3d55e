"""``kd``: the student's softened softmax imitates that of a linear probe on the stored features.

Loss of Hinton et al. 2015 ("Distilling the knowledge in a neural network"), also called Soft Target.
"""

from torch import Tensor

from distill.losses.logits import kd_kl
from distill.methods.base import Setup
from distill.methods.probe_logits import ProbeLogits


class KD(ProbeLogits):
    """L = CE(D_L) + weight T^2 KL(probe(f_t) || z_s) over all images."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = setup.config.kd

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        """See ``ProbeLogits.compare``."""
        options = self.options
        return options.weight * kd_kl(student_BK, target_BK, temperature=options.temperature)
