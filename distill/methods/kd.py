"""``kd``: the student's softened softmax imitates that of a linear probe on the stored features.

Loss of Hinton et al. 2015 ("Distilling the knowledge in a neural network"), also called Soft Target.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor
from distill.losses.logits import kd_kl
from distill.methods.probe_logits import ProbeLogits
from distill.options import CheckedOptions


@dataclass(frozen=True, kw_only=True)
class KDConfig(CheckedOptions, name="kd", positive=("temperature",)):
    """Method ``kd``: T^2 KL towards the logits of a linear probe on the stored features (Hinton et al. 2015)."""

    weight: float = 1.0
    """Weight of the KL term beside the cross entropy; published code uses 9 on CIFAR and 1 on ImageNet."""
    temperature: float = 4.0
    """Temperature T of both softmaxes; 4 is common on CIFAR, 1 on ImageNet."""


class KD(ProbeLogits):
    """L = CE(D_L) + weight T^2 KL(probe(f_t) || z_s) over all images."""

    Options = KDConfig
    options: KDConfig

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        """See ``ProbeLogits.compare``."""
        options = self.options
        return options.weight * kd_kl(student_BK, target_BK, temperature=options.temperature)
