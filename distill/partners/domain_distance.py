"""``dan``, ``deepcoral``, ``dsan``: a distance between source and target features, added to the loss.

Each is computed on the student's feature over a process's batch. Published code puts it on a 256-d bottleneck, which
would change what is exported and what methods compare; none is added here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.lazy import Tensor
from distill.losses.adaptation import coral, lmmd, mk_mmd, ramp
from distill.losses.semisupervised import probabilities
from distill.methods.base import Batch, Output, Setup
from distill.options import CheckedOptions
from distill.partners.base import Partner
from distill.partners.progress import Progress


@dataclass(frozen=True, kw_only=True)
class DANConfig(CheckedOptions, name="dan"):
    """Partner ``dan``: multi-kernel MMD between source and target features (Long et al. 2015)."""

    weight: float = 0.5
    """Weight of this partner's term beside the method's loss."""


class DAN(Partner):
    """weight (mean K_ss + mean K_tt - 2 mean K_st), arXiv:1502.02791."""

    Options = DANConfig
    options: DANConfig

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        return {"mmd": self.options.weight * mk_mmd(labelled.features, weak.features)}


@dataclass(frozen=True, kw_only=True)
class DeepCORALConfig(CheckedOptions, name="deepcoral"):
    """Partner ``deepcoral``: distance of the two covariances (Sun and Saenko 2016)."""

    weight: float = 10.0
    """Weight of this partner's term beside the method's loss."""


class DeepCORAL(Partner):
    """weight ||cov(f_s) - cov(f_t)||_F^2 / (4 C^2), C the width of the feature, arXiv:1607.01719."""

    Options = DeepCORALConfig
    options: DeepCORALConfig

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        return {"coral": self.options.weight * coral(labelled.features, weak.features)}


@dataclass(frozen=True, kw_only=True)
class DSANConfig(CheckedOptions, name="dsan"):
    """Partner ``dsan``: MMD within every class that source and target share in a batch (Zhu et al. 2020)."""

    weight: float = 0.5
    """Weight of this partner's term beside the method's loss."""
    gamma: float = 10.0
    """Growth of the weight, 2 / (1 + exp(-gamma p)) - 1 with p from 0 to 1 over training."""


class DSAN(Partner):
    """weight (2 / (1 + exp(-gamma p)) - 1) LMMD, p = 0 to 1 over training, by step as in DeepDA.

    The target's classes are its predicted probabilities. Small batches with many classes share few of them: use a large
    ``--train.unlabelled_batch``.
    """

    Options = DSANConfig
    options: DSANConfig

    def __init__(self, setup: Setup, options: DSANConfig) -> None:
        super().__init__(setup, options)
        self.progress = Progress(setup, self.memory)

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        weight = self.options.weight * ramp(self.progress.share, self.options.gamma)
        self.progress.advance()
        labels = batch.labels[: batch.num_labelled]
        discrepancy = lmmd(labelled.features, weak.features, labels, probabilities(weak.logits))
        return {"lmmd": weight * discrepancy}
