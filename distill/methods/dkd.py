"""``dkd``: decoupled KD (Zhao et al., CVPR 2022, arXiv:2203.08679) towards a linear probe on the stored features.

The loss needs the class of an image. Of an unlabelled one it is the class that the probe chooses, or the image is left
out (``--dkd.target``); the paper assumes labels for all images [I].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.lazy import Tensor
from distill.losses.logits import dkd
from distill.methods.base import Setup, Student
from distill.methods.probe_logits import ProbeLogits, classes_of, ramp
from distill.options import CheckedOptions, Target


@dataclass(frozen=True, kw_only=True)
class DKDConfig(
    CheckedOptions,
    name="dkd",
    positive=(
        "temperature",
        "warmup_epochs",
    ),
):
    """Method ``dkd``: decoupled KD (Zhao et al., CVPR 2022) towards the probe's logits."""

    alpha: float = 1.0
    """Weight of the target-class term TCKD."""
    beta: float = 2.0
    """Weight of the non-target term NCKD; the authors use 2 to 8 on CIFAR, 0.5 or 2 on ImageNet."""
    temperature: float = 4.0
    """Temperature of both softmaxes; the authors use 4 on CIFAR and 1 on ImageNet."""
    warmup_epochs: int = 1
    """Epochs in which the weight of both terms rises linearly; the authors use 20 of 240 on CIFAR, 1 on ImageNet."""
    target: Target = "teacher"
    """Class of an image in this loss. teacher: its label where known, else the class with the largest teacher logit.
    labels: its label only; images without one are left out of the term."""


class DKD(ProbeLogits):
    """L = CE(D_L) + ramp (alpha TCKD + beta NCKD) over the images that have a class."""

    Options = DKDConfig
    options: DKDConfig

    def __init__(self, setup: Setup, options: DKDConfig) -> None:
        super().__init__(setup, options)
        self.epoch = 0

    def begin_epoch(self, epoch: int, student: Student) -> dict[str, float]:
        """The ramp goes by epochs [C]."""
        self.epoch = epoch
        return {}

    def compare(self, student_BK: Tensor, target_BK: Tensor, labels_B: Tensor) -> Tensor:
        """See ``ProbeLogits.compare``."""
        options = self.options
        return ramp(self.epoch, options.warmup_epochs) * dkd(
            student_BK,
            target_BK,
            classes_of(options.target, labels_B, target_BK),
            alpha=options.alpha,
            beta=options.beta,
            temperature=options.temperature,
        )

    def state(self) -> dict[str, Any]:
        """The epoch: a run may resume in the middle of one."""
        return {"epoch": self.epoch}

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Component.load_state``."""
        self.epoch = state["epoch"]
