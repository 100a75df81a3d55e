"""``specmatch``: the student predicts the stored feature's coefficients in its own PCA basis (SpecMatch, 2026).

In a plain squared error the few components of large variance count for nearly everything. Here each component's error
is raised to a power below 1 before they are summed, so that the many small ones are learnt as well. The basis is
computed once from the store, by a decomposition whose signs are fixed, so that equal stores give equal runs.
"""

# B batch, C student width, D teacher width, which is also the number of components

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.lazy import Tensor, nn, no_grad, torch
from distill.losses.features import spectral_match
from distill.measures.feature_similarity import thin_out
from distill.methods.base import Batch, Output, Setup, Side, Student, VectorMethod
from distill.options import VectorOptions


@dataclass(frozen=True, kw_only=True)
class SpecMatchConfig(VectorOptions, name="specmatch", positive=("beta", "eps")):
    """Method ``specmatch``: coefficients in the PCA basis of the stored features, small components lifted (2026)."""

    weight: float = 1e-3
    """Weight of the sum over components beside the cross entropy; about 1 / components makes both equally large."""
    beta: float = 1 / 3
    """Power of each component's squared error; below 1, small components count more. 1: plain squared error."""
    eps: float = 1e-6
    """Added to each component's error, so that the power has a gradient at zero."""
    warmup_steps: int = 500
    """Optimiser steps in which the term trains its Linear only, without a gradient to the student; at most a tenth of
    the run."""


MEASURED = 65_536  # most training images that the basis is computed from


class SpecMatch(VectorMethod):
    """L = CE(D_L) + weight sum_k (e_k + eps)^beta over all images; e_k is component k's squared error, mean over them.

    Trained: student, P_s. Frozen: the stored f_t and the basis. Coupled through the batch, as each mean is taken
    before the power: a process takes its own share, and each accumulated piece counts by itself.
    """

    Options = SpecMatchConfig
    options: SpecMatchConfig

    def __init__(self, setup: Setup, options: SpecMatchConfig) -> None:
        super().__init__(setup, options)
        from distill.methods.modules import PatientLinear

        self.basis = self._measure().to(setup.device)
        self.head = PatientLinear(setup.student_width, setup.features.width)
        steps = min(self.options.warmup_steps, setup.epochs * setup.steps_per_epoch // 10)
        self.warmup = steps * setup.config.train.grad_accum
        self._count(0)

    @no_grad
    def _measure(self) -> nn.Module:
        """Eigenvectors of the covariance over the training images, in every view that training picks from."""
        from distill.methods.modules import Basis

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

    def terms(self, output: Output, batch: Batch, student: Student) -> dict[str, Tensor]:
        self._count(self.pieces + 1)
        options, predicted = self.options, output.projected["coefficients"]
        target = self.basis(self.target(batch))
        match = spectral_match(predicted, target, beta=options.beta, eps=options.eps)
        return {"spectrum": options.weight * match}

    def state(self) -> dict[str, Any]:
        """The basis, and how many pieces of steps were seen."""
        return {"basis": self.basis.state_dict(), "pieces": self.pieces}

    def load_state(self, state: dict[str, Any]) -> None:
        self.basis.load_state_dict(state["basis"])
        self._count(state["pieces"])
