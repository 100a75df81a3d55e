"""``probe_kd``: the student's logits imitate those of a linear probe on the stored features.

Loss of Hinton et al. 2015 ("Distilling the knowledge in a neural network"); the teacher's logits come from a logistic
regression on the stored features of the labelled images, so that no teacher is needed.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from distill.data import Batch
from distill.losses import cross_entropy, kd_kl
from distill.methods.base import Forward, Method, Setup
from distill.probe import LinearProbe
from distill.student import Student


def probe_layer(probe: LinearProbe, device: torch.device) -> nn.Linear:
    """A fitted probe as a frozen Linear."""
    layer = nn.utils.skip_init(nn.Linear, probe.weight_KD.shape[1], len(probe.bias_K))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(probe.weight_KD))
        layer.bias.copy_(torch.from_numpy(probe.bias_K))
    return layer.requires_grad_(False).to(device)


class ProbeKD(Method):
    """L = CE(D_L) + weight T^2 KL(probe(f_t) || z_s) over all images. Trained: student. Frozen: probe, stored f_t."""

    uses_unlabelled: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = setup.config.probe_kd
        self.probe = probe_layer(setup.probe, setup.device)

    def loss(self, forward: Forward, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        output = forward(batch.images)
        assert batch.teacher is not None  # uses_features
        with torch.no_grad():
            target = self.probe(batch.teacher)
        kl = kd_kl(output.logits, target, temperature=self.options.temperature)
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            "logits": self.options.weight * kl,
        }
