"""Options of the methods that compare features, one image at a time or in relation to others.

Every weight stands beside a cross entropy of weight 1.
"""

from dataclasses import dataclass

from distill.options.common import Norm, not_negative, positive
from featstore.sources.config import require


@dataclass(frozen=True, kw_only=True)
class FitNetConfig:
    """Method ``fitnet``: the student's feature, through one Linear, imitates the stored feature (MSE)."""

    weight: float = 100.0
    """Weight of the MSE, as code in public has it for maps [C]; it also did best here (docs/results)."""
    norm: Norm = "standardize"
    """Normalisation of the stored feature."""

    def __post_init__(self) -> None:
        not_negative("fitnet", self, "weight")


@dataclass(frozen=True, kw_only=True)
class FitNetGridConfig:
    """Method ``fitnet_grid``: the student's last map, through a 1x1 convolution, imitates the stored grid (MSE)."""

    weight: float = 1.0
    """Weight of the MSE; 1 is our choice [I], code in public has 100 [C]."""

    def __post_init__(self) -> None:
        not_negative("fitnet_grid", self, "weight")


@dataclass(frozen=True, kw_only=True)
class RKDConfig:
    """Method ``rkd``: distances and angles between the images of a batch (Park et al., CVPR 2019)."""

    weight: float = 1.0
    """Weight of both terms together [C]."""
    w_distance: float = 25.0
    """Share of the distances [C]."""
    w_angle: float = 50.0
    """Share of the angles [C]."""
    most: int = 128
    """Most images whose angles are compared, evenly spread over the batch; the memory grows with the cube."""
    norm: Norm = "none"
    """Normalisation of the stored feature."""

    def __post_init__(self) -> None:
        not_negative("rkd", self, "weight", "w_distance", "w_angle")
        require(self.most >= 3, f"--rkd.most {self.most} must be at least 3: an angle has three.")


@dataclass(frozen=True, kw_only=True)
class CCConfig:
    """Method ``cc``: correlations between the images of a batch, by a Gaussian kernel (Peng et al., ICCV 2019)."""

    weight: float = 100.0
    """Weight of the MSE between both matrices; that of the script in Knowledge-Distillation-Zoo [C]."""
    gamma: float = 0.4
    """Of the kernel [C]."""
    order: int = 2
    """Last power of its Taylor series [C]."""
    norm: Norm = "none"
    """Normalisation of the stored feature."""

    def __post_init__(self) -> None:
        not_negative("cc", self, "weight")
        positive("cc", self, "gamma", "order")


@dataclass(frozen=True, kw_only=True)
class CCCRDConfig:
    """Method ``cc_crd``: CC as the authors of CRD wrote it, over trained embeddings; depends on the batch's order."""

    weight: float = 0.02
    """Weight of the term [C]."""
    width: int = 128
    """Width of both embeddings, one Linear each [C]."""
    norm: Norm = "none"
    """Normalisation of the stored feature."""

    def __post_init__(self) -> None:
        not_negative("cc_crd", self, "weight")
        positive("cc_crd", self, "width")


@dataclass(frozen=True, kw_only=True)
class SPConfig:
    """Method ``sp``: similarities between the images of a batch (Tung and Mori, ICCV 2019)."""

    weight: float = 3000.0
    """Weight of the term [C]."""
    norm: Norm = "none"
    """Normalisation of the stored feature."""

    def __post_init__(self) -> None:
        not_negative("sp", self, "weight")


@dataclass(frozen=True, kw_only=True)
class PKTConfig:
    """Method ``pkt``: probabilities of being neighbours in a batch (Passalis and Tefas, ECCV 2018)."""

    weight: float = 30000.0
    """Weight of the term [C]."""
    norm: Norm = "none"
    """Normalisation of the stored feature."""

    def __post_init__(self) -> None:
        not_negative("pkt", self, "weight")


@dataclass(frozen=True, kw_only=True)
class CRDConfig:
    """Method ``crd``: contrast against memory banks over the training images (Tian et al., ICLR 2020)."""

    weight: float = 0.8
    """Weight of the term [C]."""
    width: int = 128
    """Width of both embeddings, one Linear each [C]."""
    negatives: int = 16384
    """Rows of a bank that a step compares with, at most all training images [C]."""
    temperature: float = 0.07
    """Of the similarities [C]."""
    momentum: float = 0.5
    """Share of the old row when a row of a bank is replaced [C]."""
    norm: Norm = "none"
    """Normalisation of the stored feature."""

    def __post_init__(self) -> None:
        not_negative("crd", self, "weight")
        positive("crd", self, "width", "negatives", "temperature")
        require(
            0 <= self.momentum < 1,
            f"--crd.momentum {self.momentum} must be at least 0 and below 1.",
        )


@dataclass(frozen=True, kw_only=True)
class NORMConfig:
    """Method ``norm``: many representations of the student imitate one feature (NORM, Liu et al., ICLR 2023)."""

    weight: float = 1.0
    """Weight of N times the MSE; against it, code in public weighs the cross entropy with 1/16 to 1 [C]."""
    copies: int = 8
    """N, student representations per stored feature [C]."""
    norm: Norm = "none"
    """Normalisation of the stored feature."""

    def __post_init__(self) -> None:
        not_negative("norm", self, "weight")
        positive("norm", self, "copies")


@dataclass(frozen=True, kw_only=True)
class ATConfig:
    """Method ``at``: where the student's last map and the stored grid have their energy (attention transfer)."""

    weight: float = 1000.0
    """Weight of the term [C]."""

    def __post_init__(self) -> None:
        not_negative("at", self, "weight")


@dataclass(frozen=True, kw_only=True)
class QueueKLConfig:
    """Method ``queue_kl``: similarities to a queue of stored features as pseudo-classes (LightlyTrain, v1)."""

    weight: float = 1.0
    """Weight of the KL; 1 is our choice [I]."""
    size: int = 8192
    """Rows of the queue, at most all training images; drawn anew in every epoch [C]."""
    temperature: float = 0.07
    """Of both softmaxes [C]."""
    norm: Norm = "none"
    """Normalisation of the stored feature, before all lengths are made 1."""

    def __post_init__(self) -> None:
        not_negative("queue_kl", self, "weight")
        positive("queue_kl", self, "size", "temperature")


@dataclass(frozen=True, kw_only=True)
class SpecMatchConfig:
    """Method ``specmatch``: coefficients in the PCA basis of the stored features, small components lifted (2026)."""

    weight: float = 1e-3
    """Weight of the sum over components: about one over their number, which makes it as large as the cross entropy.
    Our choice [I]: the source trains with this term alone."""
    beta: float = 1 / 3
    """Power of each component's error; 1 is the plain squared error [S]."""
    eps: float = 1e-6
    """Added to each component's error [I]."""
    warmup_steps: int = 500
    """Optimiser steps in which the term trains its Linear alone and leaves the student to the labels [S]; at most a
    tenth of the run [I]."""
    norm: Norm = "none"
    """Normalisation of the stored feature, before the basis is computed."""

    def __post_init__(self) -> None:
        not_negative("specmatch", self, "weight", "warmup_steps")
        positive("specmatch", self, "beta", "eps")


@dataclass(frozen=True, kw_only=True)
class TfFDConfig:
    """Method ``tffd``: the student's own maps teach each other; no teacher is used (a control)."""

    w_inter: float = 5e-4
    """Weight of the MSE between neighbouring stages [C]."""
    w_intra: float = 8e-4
    """Weight of the MSE between weaker and stronger channels of a stage [C]."""

    def __post_init__(self) -> None:
        not_negative("tffd", self, "w_inter", "w_intra")
