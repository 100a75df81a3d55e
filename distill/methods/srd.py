"""``srd``: semantic representational distillation: the student's feature must mean the same to the teacher's head.

Yang et al. ("Knowledge distillation meets open-set semi-supervised learning", arXiv:2205.06701), made for unlabelled
images that may be of other classes. The teacher's head is the linear probe on its stored features. The projection is
one Linear on the pooled feature [I]; the paper's is a convolution with batch norm and ReLU on maps [C], behind which
the signed features of a ViT could not be matched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.lazy import Tensor, nn
from distill.losses import cross_entropy, feature_mse
from distill.losses.logits import logit_mse
from distill.methods.base import Batch, Method, Needs, Output, Setup, Side, Student
from distill.methods.probe_logits import probe_layer
from distill.options import CheckedOptions
from featstore.sources.config import require


@dataclass(frozen=True, kw_only=True)
class SRDConfig(CheckedOptions, name="srd"):
    """Method ``srd``: semantic representational distillation, through the probe as the teacher's head."""

    w_feature: float = 1.0
    """Weight of MSE(P_s(f_s), f_t) beside the cross entropy."""
    w_logits: float = 1.0
    """Weight of MSE(probe(P_s(f_s)), probe(f_t)) beside the cross entropy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.w_feature + self.w_logits > 0,
            "--srd.w_feature and --srd.w_logits are both 0: nothing would be distilled; use --methods labels.",
        )


class SRD(Method):
    """L = CE(D_L) + w_feature MSE(P_s(f_s), f_t) + w_logits MSE(probe(P_s(f_s)), probe(f_t)) over all images.

    Trained: student, P_s. Frozen: probe, stored f_t. f_t is the raw stored feature, the one that the probe reads.
    """

    Options = SRDConfig
    options: SRDConfig

    def __init__(self, setup: Setup, options: SRDConfig) -> None:
        super().__init__(setup, options)
        self.probe = probe_layer(setup.probe, setup.device)

    @classmethod
    def needs(cls, options: Any) -> Needs:
        """A classifier: its logits are compared."""
        return Needs(labels=True)

    def student_sides(self) -> dict[str, Side]:
        """P_s: student width -> teacher width."""
        return {"general": Side(nn.Linear(self.setup.student_width, self.setup.features.width))}

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        assert batch.teacher is not None  # needs
        projected = output.projected["general"].float()
        logits = logit_mse(self.probe(projected), self.probe(batch.teacher))
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            "general": self.options.w_feature * feature_mse(projected, batch.teacher),
            "logits": self.options.w_logits * logits,
        }
