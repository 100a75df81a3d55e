"""``features``: the student's feature, through one Linear, imitates the stored one (FitNets on pooled features)."""

from typing import ClassVar

from torch import Tensor, nn

from distill.alignment import FeatureNorm, projection
from distill.data import Batch
from distill.losses import cross_entropy, feature_mse
from distill.methods.base import Forward, Method, Setup
from distill.student import Student


class FeatureMatching(Method):
    """L = CE(D_L) + weight MSE(P_s(f_s), f_t) over all images. Trained: student, P_s. Frozen: the stored f_t."""

    uses_unlabelled: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        options = setup.config.features
        self.weight = options.weight
        self.norm = FeatureNorm(options.norm, setup.statistics(options.norm)).to(setup.device)

    def student_sides(self) -> dict[str, nn.Module]:
        """P_s: student width -> teacher width."""
        return {"general": projection(self.setup.student_width, self.setup.features.width)}

    def loss(self, forward: Forward, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        output = forward(batch.images)
        assert batch.teacher is not None  # uses_features
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            "general": self.weight
            * feature_mse(output.projected["general"], self.norm(batch.teacher)),
        }
