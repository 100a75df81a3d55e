"""``rkd``, ``cc``, ``cc_crd``, ``sp``, ``pkt``: the stored features' relations between the images of a batch.

L = CE(D_L) + weight L_relations over all images. Trained: student, and for ``cc_crd`` one Linear on each side. Frozen:
the stored f_t. Features of unlike width are compared without any projection, save in ``cc_crd``.

These losses are coupled through the batch. A process compares the images of its own share, and of each accumulated
piece by itself: with more processes or pieces the relations are of fewer images, and the loss is not that of the whole
batch.
"""

# B batch, C student width, D teacher width

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from distill.lazy import Tensor, nn, torch
from distill.losses import cross_entropy
from distill.losses.relations import cc, cc_crd, pkt, rkd_angle, rkd_distance, sp
from distill.methods.base import Batch, Method, Output, Setup, Side, Student
from distill.options import CheckedOptions, Norm
from featstore.sources.config import require


@dataclass(frozen=True, kw_only=True)
class RKDConfig(CheckedOptions, name="rkd"):
    """Method ``rkd``: distances and angles between the images of a batch (Park et al., CVPR 2019)."""

    weight: float = 1.0
    """Weight of both terms together beside the cross entropy."""
    w_distance: float = 25.0
    """Weight of the distances within the sum."""
    w_angle: float = 50.0
    """Weight of the angles within the sum."""
    most: int = 128
    """Most images of a batch whose angles are compared, evenly spread; memory grows with the cube."""
    norm: Norm = "none"
    """Normalisation of the stored feature before it is compared: none, standardize (zero mean and unit variance per
    channel over the training images), layernorm (per image) or l2 (length 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.most >= 3, f"--rkd.most {self.most} must be at least 3: an angle has three.")


@dataclass(frozen=True, kw_only=True)
class CCConfig(
    CheckedOptions,
    name="cc",
    positive=(
        "gamma",
        "order",
    ),
):
    """Method ``cc``: correlations between the images of a batch, by a Gaussian kernel (Peng et al., ICCV 2019)."""

    weight: float = 100.0
    """Weight of the squared error between both matrices beside the cross entropy."""
    gamma: float = 0.4
    """Width parameter of the Gaussian kernel."""
    order: int = 2
    """Last power of the kernel's Taylor series."""
    norm: Norm = "none"
    """Normalisation of the stored feature before it is compared: none, standardize (zero mean and unit variance per
    channel over the training images), layernorm (per image) or l2 (length 1)."""


@dataclass(frozen=True, kw_only=True)
class SPConfig(CheckedOptions, name="sp"):
    """Method ``sp``: similarities between the images of a batch (Tung and Mori, ICCV 2019)."""

    weight: float = 3000.0
    """Weight of the similarity term beside the cross entropy."""
    norm: Norm = "none"
    """Normalisation of the stored feature before it is compared: none, standardize (zero mean and unit variance per
    channel over the training images), layernorm (per image) or l2 (length 1)."""


@dataclass(frozen=True, kw_only=True)
class PKTConfig(CheckedOptions, name="pkt"):
    """Method ``pkt``: probabilities of being neighbours in a batch (Passalis and Tefas, ECCV 2018)."""

    weight: float = 30000.0
    """Weight of the neighbour term beside the cross entropy."""
    norm: Norm = "none"
    """Normalisation of the stored feature before it is compared: none, standardize (zero mean and unit variance per
    channel over the training images), layernorm (per image) or l2 (length 1)."""


@dataclass(frozen=True, kw_only=True)
class CCCRDConfig(CheckedOptions, name="cc_crd", positive=("width",)):
    """Method ``cc_crd``: CC as the authors of CRD wrote it, over trained embeddings; depends on the batch's order."""

    weight: float = 0.02
    """Weight of the correlation term beside the cross entropy."""
    width: int = 128
    """Width of both embeddings, each made by one Linear."""
    norm: Norm = "none"
    """Normalisation of the stored feature before it is compared: none, standardize (zero mean and unit variance per
    channel over the training images), layernorm (per image) or l2 (length 1)."""


class Relational(Method):
    """Base of the methods that compare the student's features to the stored ones within a batch."""

    def __init__(self, setup: Setup, options: Any) -> None:
        super().__init__(setup, options)
        self.norm = setup.norm(options.norm)

    @abstractmethod
    def relations(self, student_BC: Tensor, target_BD: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name, of the student's and of the normalised stored features."""

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        assert batch.teacher is not None  # needs
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            **self.relations(output.features, self.norm(batch.teacher)),
        }


class RKD(Relational):
    """Distances and angles (RKD-DA): weight (25 L_D + 50 L_A)."""

    Options = RKDConfig
    options: RKDConfig

    def relations(self, student_BC: Tensor, target_BD: Tensor) -> dict[str, Tensor]:
        """Distances of all images; angles of at most ``most``, evenly spread, so that all parts are among them."""
        options, count = self.options, len(student_BC)
        some = torch.linspace(0, count - 1, min(count, options.most)).round().long()
        some = some.to(student_BC.device)
        distance = rkd_distance(student_BC, target_BD)
        angle = rkd_angle(student_BC[some], target_BD[some])
        return {
            "distance": options.weight * options.w_distance * distance,
            "angle": options.weight * options.w_angle * angle,
        }


class CC(Relational):
    """Correlation congruence, by the Taylor series of a Gaussian kernel."""

    Options = CCConfig
    options: CCConfig

    def relations(self, student_BC: Tensor, target_BD: Tensor) -> dict[str, Tensor]:
        """MSE between both correlation matrices."""
        options = self.options
        loss = cc(student_BC, target_BD, gamma=options.gamma, order=options.order)
        return {"correlation": options.weight * loss}


class SP(Relational):
    """Similarity preservation."""

    Options = SPConfig
    options: SPConfig

    def relations(self, student_BC: Tensor, target_BD: Tensor) -> dict[str, Tensor]:
        """Squared difference of both similarity matrices."""
        return {"similarity": self.options.weight * sp(student_BC, target_BD)}


class PKT(Relational):
    """Probabilistic knowledge transfer."""

    Options = PKTConfig
    options: PKTConfig

    def relations(self, student_BC: Tensor, target_BD: Tensor) -> dict[str, Tensor]:
        """KL of the probabilities of being neighbours."""
        return {"neighbours": self.options.weight * pkt(student_BC, target_BD)}


class CCCRD(Method):
    """Correlation congruence as the authors of CRD wrote it: over embeddings of both sides, between neighbours [C].

    Depends on the order of the batch, which the sampler shuffles.
    """

    Options = CCCRDConfig
    options: CCCRDConfig

    def __init__(self, setup: Setup, options: CCCRDConfig) -> None:
        super().__init__(setup, options)
        self.norm = setup.norm(self.options.norm)

    def student_sides(self) -> dict[str, Side]:
        """Both embeddings."""
        width = self.options.width
        return {
            "student_embedding": Side(nn.Linear(self.setup.student_width, width)),
            "teacher_embedding": Side(nn.Linear(self.setup.features.width, width), "teacher"),
        }

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The normalised stored feature."""
        assert batch.teacher is not None  # needs
        return {"teacher": self.norm(batch.teacher)}

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        sides = output.projected
        correlation = cc_crd(sides["student_embedding"], sides["teacher_embedding"])
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            "correlation": self.options.weight * correlation,
        }
