"""``logits``: the student's logits imitate those of a linear probe on the stored features, by squared error.

Ba & Caruana, NeurIPS 2014 ("Do deep nets really need to be deep?", arXiv:1312.6184).
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor
from distill.losses.logits import logit_mse
from distill.methods.base import Setup
from distill.methods.probe_logits import ProbeLogits
from distill.options import CheckedOptions


@dataclass(frozen=True, kw_only=True)
class LogitsConfig(CheckedOptions, name="logits"):
    """Method ``logits``: mean squared error towards the probe's logits (Ba & Caruana 2014)."""

    weight: float = 1.0
    """Weight of the squared error beside the cross entropy."""


class Logits(ProbeLogits):
    """L = CE(D_L) + weight MSE(z_s, probe(f_t)) over all images."""

    Options = LogitsConfig
    options: LogitsConfig

    def __init__(self, setup: Setup, options: LogitsConfig) -> None:
        super().__init__(setup, options)
        self.weight = options.weight

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        """See ``ProbeLogits.compare``."""
        return self.weight * logit_mse(student_BK, target_BK)
