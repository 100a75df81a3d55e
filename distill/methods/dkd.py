"""``dkd``: decoupled KD (Zhao et al., CVPR 2022, arXiv:2203.08679) towards a linear probe on the stored features.

The loss needs the class of an image. Of an unlabelled one it is the class that the probe chooses, or the image is left
out (``--dkd.target``); the paper has labels for all and says nothing of it [I].
"""

from typing import Any

from torch import Tensor

from distill.losses.logits import dkd
from distill.methods.base import Setup
from distill.methods.probe_logits import ProbeLogits, classes_of, ramp
from distill.student.model import Student


class DKD(ProbeLogits):
    """L = CE(D_L) + ramp (alpha TCKD + beta NCKD) over the images that have a class."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = setup.config.dkd
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
        """The epoch: a run may go on in the middle of one."""
        return {"epoch": self.epoch}

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Part.load_state``."""
        self.epoch = state["epoch"]
