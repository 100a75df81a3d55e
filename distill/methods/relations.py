"""``rkd``, ``cc``, ``cc_crd``, ``sp``, ``pkt``: the stored features' relations between the images of a batch.

L = CE(D_L) + weight L_relations over all images. Trained: student, and for ``cc_crd`` one Linear on each side. Frozen:
the stored f_t. Features of unlike width are compared without any projection, save in ``cc_crd``.

These losses are coupled through the batch. A process compares the images of its own share, and of each accumulated
piece by itself: with more processes or pieces the relations are of fewer images, and the loss is not that of the whole
batch.
"""

# B batch, C student width, D teacher width

from abc import abstractmethod

import torch
from torch import Tensor, nn

from distill.data.pictures import Batch
from distill.losses import cross_entropy
from distill.losses.relations import cc, cc_crd, pkt, rkd_angle, rkd_distance, sp
from distill.methods.base import Method, Output, Setup, Side
from distill.options.common import Norm
from distill.student.model import Student


class Relational(Method):
    """Base of the methods that compare the student's features to the stored ones within a batch."""

    def __init__(self, setup: Setup, norm: Norm) -> None:
        super().__init__(setup)
        self.norm = setup.norm(norm)

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

    def __init__(self, setup: Setup) -> None:
        self.options = setup.config.rkd
        super().__init__(setup, self.options.norm)

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

    def __init__(self, setup: Setup) -> None:
        self.options = setup.config.cc
        super().__init__(setup, self.options.norm)

    def relations(self, student_BC: Tensor, target_BD: Tensor) -> dict[str, Tensor]:
        """MSE between both correlation matrices."""
        options = self.options
        loss = cc(student_BC, target_BD, gamma=options.gamma, order=options.order)
        return {"correlation": options.weight * loss}


class SP(Relational):
    """Similarity preservation."""

    def __init__(self, setup: Setup) -> None:
        self.options = setup.config.sp
        super().__init__(setup, self.options.norm)

    def relations(self, student_BC: Tensor, target_BD: Tensor) -> dict[str, Tensor]:
        """Squared difference of both similarity matrices."""
        return {"similarity": self.options.weight * sp(student_BC, target_BD)}


class PKT(Relational):
    """Probabilistic knowledge transfer."""

    def __init__(self, setup: Setup) -> None:
        self.options = setup.config.pkt
        super().__init__(setup, self.options.norm)

    def relations(self, student_BC: Tensor, target_BD: Tensor) -> dict[str, Tensor]:
        """KL of the probabilities of being neighbours."""
        return {"neighbours": self.options.weight * pkt(student_BC, target_BD)}


class CCCRD(Method):
    """Correlation congruence as the authors of CRD wrote it: over embeddings of both sides, between neighbours [C].

    Depends on the order of the batch, which the sampler shuffles.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = setup.config.cc_crd
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
