"""``dist``: DIST (Huang et al., NeurIPS 2022, arXiv:2205.10536) towards a linear probe on the stored features.

Not the values of the probe's softmax are imitated but their correlations, within an image and within a class. The
latter is over the images of one batch: with several processes, of one process's share of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor
from distill.losses.logits import dist
from distill.methods.probe_logits import ProbeLogits
from distill.options import CheckedOptions


@dataclass(frozen=True, kw_only=True)
class DISTConfig(CheckedOptions, name="dist", positive=("temperature",)):
    """Method ``dist``: correlations of rows and columns with the probe's softmax (Huang et al., NeurIPS 2022)."""

    weight: float = 2.0
    """Weight of both terms together beside the cross entropy."""
    beta: float = 1.0
    """Weight of the relations between the classes of an image (rows)."""
    gamma: float = 1.0
    """Weight of the relations between the images of a batch (columns); each process compares its own images."""
    temperature: float = 1.0
    """Temperature of both softmaxes; the authors use 4 on CIFAR and 1 on ImageNet."""


class DIST(ProbeLogits):
    """L = CE(D_L) + weight T^2 (beta (1 - r of rows) + gamma (1 - r of columns)) over all images."""

    Options = DISTConfig
    options: DISTConfig

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
