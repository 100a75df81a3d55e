"""Options of the methods that compare logits; the teacher's come from a linear probe on the stored features."""

from dataclasses import dataclass
from typing import Literal

from distill.options.common import not_negative, positive
from featstore.sources.config import require

Target = Literal["teacher", "labels"]
"""Class of an image that a loss needs one for. teacher: the label where it is known, else the class that the teacher
chooses. labels: the label; images without one are left out of the term."""


@dataclass(frozen=True, kw_only=True)
class KDConfig:
    """Method ``kd``: T^2 KL towards the logits of a linear probe on the stored features (Hinton et al. 2015)."""

    weight: float = 1.0
    """Weight of the term beside the cross entropy; code in public has 9 (CIFAR) and 1 (ImageNet, OFA-KD) [C]."""
    temperature: float = 4.0
    """T; 4 on CIFAR, 1 on ImageNet [C]."""

    def __post_init__(self) -> None:
        not_negative("kd", self, "weight")
        positive("kd", self, "temperature")


@dataclass(frozen=True, kw_only=True)
class LogitsConfig:
    """Method ``logits``: mean squared error towards the probe's logits (Ba & Caruana 2014)."""

    weight: float = 1.0
    """Weight of the term beside the cross entropy [C]."""

    def __post_init__(self) -> None:
        not_negative("logits", self, "weight")


@dataclass(frozen=True, kw_only=True)
class DKDConfig:
    """Method ``dkd``: decoupled KD (Zhao et al., CVPR 2022) towards the probe's logits."""

    alpha: float = 1.0
    """Weight of the target-class term TCKD [C]."""
    beta: float = 2.0
    """Weight of the non-target term NCKD; 2, 6 or 8 on CIFAR by pair of networks, 0.5 or 2 on ImageNet [C]."""
    temperature: float = 4.0
    """T; 4 on CIFAR, 1 on ImageNet [C]."""
    warmup_epochs: int = 1
    """Epoch e counts with (e + 1) / warmup_epochs, at most 1; 20 of 240 epochs on CIFAR, 1 on ImageNet [C]."""
    target: Target = "teacher"
    """Class of an image. teacher: its label, else the teacher's choice. labels: images without a label are left out."""

    def __post_init__(self) -> None:
        not_negative("dkd", self, "alpha", "beta")
        positive("dkd", self, "temperature", "warmup_epochs")


@dataclass(frozen=True, kw_only=True)
class DISTConfig:
    """Method ``dist``: correlations of rows and columns with the probe's softmax (Huang et al., NeurIPS 2022)."""

    weight: float = 2.0
    """Weight of both terms beside the cross entropy [C]."""
    beta: float = 1.0
    """Weight of the rows: relations between classes [C]."""
    gamma: float = 1.0
    """Weight of the columns: relations between the images of a batch; each process takes its own share [C]."""
    temperature: float = 1.0
    """T; 4 on CIFAR, 1 on ImageNet [C]. Correlations do not shrink with T, so that T^2 weighs both terms up."""

    def __post_init__(self) -> None:
        not_negative("dist", self, "weight", "beta", "gamma")
        positive("dist", self, "temperature")


@dataclass(frozen=True, kw_only=True)
class OFAConfig:
    """Method ``ofa``: OFA-KD (Hao et al., NeurIPS 2023), the logits of every stage towards those of the probe."""

    weight: float = 1.0
    """Weight of each exit beside the cross entropy [C]."""
    eps: float = 1.0
    """Exponent; 1 (a cross entropy to the teacher) on CIFAR with a Swin-T teacher, 1.5 on ImageNet with DeiT-T [C]."""
    temperature: float = 1.0
    """T of both softmaxes [C]."""
    stages: bool = True
    """An exit at every stage of the student; false keeps that of the final logits alone."""
    target: Target = "teacher"
    """Class of an image. teacher: its label, else the teacher's choice. labels: images without a label are left out."""

    def __post_init__(self) -> None:
        not_negative("ofa", self, "weight")
        positive("ofa", self, "eps", "temperature")


@dataclass(frozen=True, kw_only=True)
class SRDConfig:
    """Method ``srd``: semantic representational distillation, through the probe as the teacher's head."""

    w_feature: float = 1.0
    """Weight of MSE(P_s(f_s), f_t) [C]."""
    w_logits: float = 1.0
    """Weight of MSE(probe(P_s(f_s)), probe(f_t)) [C]."""

    def __post_init__(self) -> None:
        not_negative("srd", self, "w_feature", "w_logits")
        require(
            self.w_feature + self.w_logits > 0,
            "--srd.w_feature and --srd.w_logits are both 0: nothing would be distilled; use --methods labels.",
        )


@dataclass(frozen=True, kw_only=True)
class SimKDConfig:
    """Method ``simkd``: the student's feature, through one Linear, imitates f_t; the probe is reused as the head."""

    weight: float = 1.0
    """Weight of MSE(P_s(f_s), f_t), the only term [C]; it matters beside a partner's."""

    def __post_init__(self) -> None:
        positive("simkd", self, "weight")
