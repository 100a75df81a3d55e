"""``rkd``, ``cc``, ``cc_crd``, ``sp``, ``pkt``: relations between the images of a batch imitate the stored features'.

L = CE(D_L) + weight L_relations over all images. Trained: student, and for ``cc_crd`` one Linear on each side. Frozen:
the stored f_t. Features of different widths are compared without a projection, except in ``cc_crd``.

These losses depend on the whole batch. A process compares the images of its own share, and of each accumulated piece by
itself: with more processes or pieces each loss is over fewer images.
"""

# B batch, C student width, D teacher width

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor, torch
from distill.losses.relations import cc, cc_crd, pkt, rkd_angle, rkd_distance, sp
from distill.methods.base import Batch, Output, Side, Student, VectorMethod
from distill.options import VectorOptions
from featstore.sources.config import require


@dataclass(frozen=True, kw_only=True)
class RKDConfig(VectorOptions, name="rkd"):
    """Method ``rkd``: distances and angles between the images of a batch (Park et al., CVPR 2019)."""

    weight: float = 1.0
    """Weight of both terms together beside the cross entropy."""
    w_distance: float = 25.0
    """Weight of the distances within the sum."""
    w_angle: float = 50.0
    """Weight of the angles within the sum."""
    most: int = 128
    """Most images of a batch whose angles are compared, evenly spread; memory grows with the cube."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.most >= 3, f"--rkd.most {self.most} must be at least 3: an angle has three.")


class RKD(VectorMethod):
    """Distances of all images, and angles of at most ``most``, evenly spread so that all parts are among them."""

    Options = RKDConfig
    options: RKDConfig

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        options, own, target = self.options, output.features, self.target(batch)
        some = torch.linspace(0, len(own) - 1, min(len(own), options.most)).round().long()
        some = some.to(own.device)
        distance, angle = rkd_distance(own, target), rkd_angle(own[some], target[some])
        return {
            "distance": options.weight * options.w_distance * distance,
            "angle": options.weight * options.w_angle * angle,
        }


@dataclass(frozen=True, kw_only=True)
class CCConfig(VectorOptions, name="cc", positive=("gamma", "order")):
    """Method ``cc``: correlations between the images of a batch, by a Gaussian kernel (Peng et al., ICCV 2019)."""

    weight: float = 100.0
    """Weight of the squared error between both matrices beside the cross entropy."""
    gamma: float = 0.4
    """Width parameter of the Gaussian kernel."""
    order: int = 2
    """Last power of the kernel's Taylor series."""


class CC(VectorMethod):
    """MSE between both correlation matrices."""

    Options = CCConfig
    options: CCConfig

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        options, target = self.options, self.target(batch)
        loss = cc(output.features, target, gamma=options.gamma, order=options.order)
        return {"correlation": options.weight * loss}


@dataclass(frozen=True, kw_only=True)
class SPConfig(VectorOptions, name="sp"):
    """Method ``sp``: similarities between the images of a batch (Tung and Mori, ICCV 2019)."""

    weight: float = 3000.0
    """Weight of the similarity term beside the cross entropy."""


class SP(VectorMethod):
    """Squared difference of both similarity matrices."""

    Options = SPConfig
    options: SPConfig

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        return {"similarity": self.options.weight * sp(output.features, self.target(batch))}


@dataclass(frozen=True, kw_only=True)
class PKTConfig(VectorOptions, name="pkt"):
    """Method ``pkt``: probabilities of being neighbours in a batch (Passalis and Tefas, ECCV 2018)."""

    weight: float = 30000.0
    """Weight of the neighbour term beside the cross entropy."""


class PKT(VectorMethod):
    """KL of the probabilities of being neighbours."""

    Options = PKTConfig
    options: PKTConfig

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        return {"neighbours": self.options.weight * pkt(output.features, self.target(batch))}


@dataclass(frozen=True, kw_only=True)
class CCCRDConfig(VectorOptions, name="cc_crd", positive=("width",)):
    """Method ``cc_crd``: CC as the authors of CRD wrote it, over trained embeddings; depends on the batch's order."""

    weight: float = 0.02
    """Weight of the correlation term beside the cross entropy."""
    width: int = 128
    """Width of both embeddings, each made by one Linear."""


class CCCRD(VectorMethod):
    """Products of neighbours' differences between both embeddings; the sampler shuffles the batch."""

    Options = CCCRDConfig
    options: CCCRDConfig

    def student_sides(self) -> dict[str, Side]:
        """Both embeddings."""
        return self.embeddings(self.options.width)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The normalised stored feature."""
        return {"teacher": self.target(batch)}

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        sides = output.projected
        correlation = cc_crd(sides["student_embedding"], sides["teacher_embedding"])
        return {"correlation": self.options.weight * correlation}
