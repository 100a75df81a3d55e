"""``specmatch``: the student predicts the stored feature's coefficients in its own PCA basis (SpecMatch, 2026) [S].

In a plain squared error the few components of large variance count for nearly everything. Here each component's error
is raised to a power below 1 before they are summed, so that the many small ones are learnt as well. The basis is
computed once from the store, by a decomposition whose signs are fixed, so that equal stores give equal runs.
"""

# B batch, C student width, D teacher width, which is also the number of components

from typing import Any

import torch
from torch import Tensor, nn

from distill.data.pictures import Batch
from distill.losses import cross_entropy
from distill.losses.features import spectral_match
from distill.measures.feature_similarity import thin_out
from distill.methods.base import Method, Output, Setup, Side
from distill.student.model import Student

MEASURED = 65_536
"""Most training images that the basis is computed from."""


class Basis(nn.Module):
    """Mean and principal axes of a feature, largest variance first; without parameters."""

    mean_D: Tensor
    axes_DD: Tensor

    def __init__(self, mean_D: Tensor, axes_DD: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_D", mean_D)
        self.register_buffer("axes_DD", axes_DD)

    def forward(self, feature_BD: Tensor) -> Tensor:
        """(B, D) -> (B, D) float32 coefficients."""
        return (feature_BD.float() - self.mean_D) @ self.axes_DD


class PatientLinear(nn.Linear):
    """A Linear that, while it is ``alone``, sends no gradient to what it is given."""

    alone = False

    def forward(self, input: Tensor) -> Tensor:
        """See ``nn.Linear``."""
        return super().forward(input.detach() if self.alone else input)


class SpecMatch(Method):
    """L = CE(D_L) + weight sum_k (e_k + eps)^beta over all images; e_k is component k's squared error, mean over them.

    Trained: student, P_s. Frozen: the stored f_t and the basis. Coupled through the batch, as each mean is taken
    before the power: a process takes its own share, and each accumulated piece counts by itself.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = setup.config.specmatch
        self.norm = setup.norm(self.options.norm)
        self.basis = self._measure().to(setup.device)
        self.head = PatientLinear(setup.student_width, setup.features.width)
        steps = min(self.options.warmup_steps, setup.epochs * setup.steps_per_epoch // 10)
        self.warmup = steps * setup.config.train.grad_accum
        self._count(0)

    @torch.no_grad()
    def _measure(self) -> Basis:
        """Eigenvectors of the covariance over the training images, in every view that training picks from."""
        setup, width = self.setup, self.setup.features.width
        training = setup.training
        some = training[thin_out(len(training), MEASURED, seed=0).numpy()]
        count, total = 0, torch.zeros(width, dtype=torch.float64)
        products = torch.zeros(width, width, dtype=torch.float64)
        for chunk in setup.features.chunks(some, setup.picker.columns):
            feature = self.norm(chunk.to(setup.device)).double().cpu()
            count += len(feature)
            total += feature.sum(0)
            products += feature.T @ feature
        mean = total / count
        axes = torch.linalg.eigh(products / count - mean.outer(mean)).eigenvectors.flip(1)
        # An eigenvector is known up to its sign; the largest entry shall be positive.
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        return Basis(mean.float(), (axes * largest.sign()).float())

    def _count(self, pieces: int) -> None:
        self.pieces = pieces
        self.head.alone = pieces < self.warmup

    def student_sides(self) -> dict[str, Side]:
        """P_s: student width -> coefficients."""
        return {"coefficients": Side(self.head)}

    def owned(self) -> list[nn.Module]:
        """The basis: other hardware may order or turn axes of equal variance differently."""
        return [self.basis]

    def loss(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        """See ``Method.loss``."""
        assert batch.teacher is not None  # needs
        self._count(self.pieces + 1)
        match = spectral_match(
            output.projected["coefficients"],
            self.basis(self.norm(batch.teacher)),
            beta=self.options.beta,
            eps=self.options.eps,
        )
        return {
            "ce": cross_entropy(output.logits, batch.labels),
            "spectrum": self.options.weight * match,
        }

    def state(self) -> dict[str, Any]:
        """The basis, and how many pieces of steps were seen."""
        return {"basis": self.basis.state_dict(), "pieces": self.pieces}

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Part.load_state``."""
        self.basis.load_state_dict(state["basis"])
        self._count(state["pieces"])
