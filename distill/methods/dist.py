"""``dist``: DIST (Huang et al., NeurIPS 2022, arXiv:2205.10536) towards a linear probe on the stored features.

Not the values of the probe's softmax are imitated but their correlations, within an image and within a class. The
latter looks at the images of one batch: with several processes, of one process's share of it.
"""

from torch import Tensor

from distill.losses.logits import dist
from distill.methods.base import Setup
from distill.methods.probe_logits import ProbeLogits


class DIST(ProbeLogits):
    """L = CE(D_L) + weight T^2 (beta (1 - r of rows) + gamma (1 - r of columns)) over all images."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = setup.config.dist

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        """See ``ProbeLogits.compare``."""
        options = self.options
        return options.weight * dist(
            student_BK,
            target_BK,
            beta=options.beta,
            gamma=options.gamma,
            temperature=options.temperature,
        )
