"""``simkd`` and ``srd``: the student's feature is classified by the teacher's head, a linear probe on its features."""

# C student width, D teacher width, K classes

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from distill.lazy import Tensor, nn, no_grad
from distill.losses import cross_entropy, feature_mse
from distill.losses.logits import logit_mse
from distill.methods.base import Batch, Method, Needs, Output, Setup, Side, Student
from distill.methods.probe_logits import probe_layer
from distill.options import CheckedOptions
from featstore.errors import ConfigError
from featstore.sources.config import require


class TeacherHead(Method):
    """Base: P_s, one Linear from the student's to the teacher's width, and the frozen probe on raw stored features."""

    NEEDS = Needs(labels=True)

    def __init__(self, setup: Setup, options: Any) -> None:
        super().__init__(setup, options)
        self.probe = probe_layer(setup.probe, setup.device)

    def student_sides(self) -> dict[str, Side]:
        """P_s: student width -> teacher width."""
        return {"general": Side(nn.Linear(self.setup.student_width, self.setup.features.width))}


class FoldedHead(TeacherHead):
    """Base: probe(P_s(f_s)) is one Linear of f_s, which takes the place of the student's own head; no cross entropy.

    Raises:
        ConfigError: the student's head is not one Linear with a bias, or labels alone are to train it in the end.
    """

    name: ClassVar[str]

    def __init__(self, setup: Setup, options: Any) -> None:
        super().__init__(setup, options)
        head = setup.student.head
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise ConfigError(
                f"--methods {self.name}: the head of {setup.student.name} is not one Linear with a bias on its "
                "feature; probe(P_s(f_s)) cannot take its place. Use --student.feature prelogits, or another student."
            )
        if setup.config.train.finetune_epochs:
            raise ConfigError(
                f"--methods {self.name}: has no cross entropy, so that nothing would be trained in the "
                f"{setup.config.train.finetune_epochs} --train.finetune_epochs. Set 0."
            )

    @no_grad
    def fold(self, student: Student, sides: Mapping[str, nn.Module]) -> None:
        """head(f) = probe(P_s(f)): weight W_t W_s (K, C), bias W_t b_s + b_t."""
        general, head = sides["general"], student.head
        assert isinstance(general, nn.Linear)
        assert isinstance(head, nn.Linear)
        # In float64, so that two products lose no more than one.
        weight, bias = self.probe.weight.double(), self.probe.bias.double()
        head.weight.copy_(weight @ general.weight.double())
        head.bias.copy_(weight @ general.bias.double() + bias)


@dataclass(frozen=True, kw_only=True)
class SimKDConfig(CheckedOptions, name="simkd", positive=("weight",)):
    """Method ``simkd``: the student's feature, through one Linear, imitates f_t; the probe is reused as the head."""

    weight: float = 1.0
    """Weight of MSE(P_s(f_s), f_t), the only term of this method; it matters beside that of a partner."""


class SimKD(FoldedHead):
    """L = weight MSE(P_s(f_s), f_t) over all images, without any cross entropy (Chen et al., CVPR 2022).

    Trained: student without its head, P_s. Frozen: probe, stored f_t. The labels enter through the probe alone. A
    partner's loss acts on the student's own head, which is not what is exported, and through it on the feature.

    In the paper (arXiv:2203.14001) the projector is a stack of convolutions on the last map that stays at inference,
    with the teacher's head. Ours is linear, on the pooled feature: probe(P_s(f_s)) is again one Linear of f_s and takes
    the place of the student's own, so that the exported student is the plain model.
    """

    name = "simkd"
    Options = SimKDConfig
    options: SimKDConfig

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        assert batch.teacher is not None  # needs
        general = feature_mse(output.projected["general"], batch.teacher)
        return {
            # Times zero: distributed training wants a gradient for every parameter, those of the unused head too.
            "ce": 0.0 * cross_entropy(output.logits, batch.labels),
            "general": self.options.weight * general,
        }


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


class SRD(TeacherHead):
    """L = CE(D_L) + w_feature MSE(P_s(f_s), f_t) + w_logits MSE(probe(P_s(f_s)), probe(f_t)) over all images.

    Trained: student, P_s. Frozen: probe, stored f_t. Yang et al. ("Knowledge distillation meets open-set
    semi-supervised learning", arXiv:2205.06701) made it for unlabelled images that may be of other classes. Their
    projection is a convolution with batch norm and ReLU on maps; ours is one Linear on the pooled feature, since the
    features of a ViT are signed.
    """

    Options = SRDConfig
    options: SRDConfig

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        assert batch.teacher is not None  # needs
        projected = output.projected["general"].float()
        logits = logit_mse(self.probe(projected), self.probe(batch.teacher))
        return {
            "general": self.options.w_feature * feature_mse(projected, batch.teacher),
            "logits": self.options.w_logits * logits,
        }
