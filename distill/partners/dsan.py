"""``dsan``: MMD within every class that source and target share in a batch (Zhu et al. 2020; DeepDA [C]).

    weight (2 / (1 + exp(-gamma p)) - 1) LMMD,   p = 0 to 1 over training

on the student's feature, over a process's batch; classes of the target are its predicted probabilities. Small batches
with many classes share few: use a large --train.unlabelled_batch. No bottleneck is added. The authors let p rise by
epoch, here it rises by step, as in DeepDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.lazy import Tensor
from distill.losses.adaptation import lmmd, ramp
from distill.losses.semisupervised import probabilities
from distill.methods.base import Batch, Output, Setup
from distill.options import CheckedOptions
from distill.partners.base import Partner
from distill.partners.progress import Progress


@dataclass(frozen=True, kw_only=True)
class DSANConfig(CheckedOptions, name="dsan"):
    """Partner ``dsan``: MMD within every class that source and target share in a batch (Zhu et al. 2020)."""

    weight: float = 0.5
    """Weight of this partner's term beside the method's loss."""
    gamma: float = 10.0
    """Growth of the weight, 2 / (1 + exp(-gamma p)) - 1 with p from 0 to 1 over training."""


class DSAN(Partner):
    """See the top of this file."""

    Options = DSANConfig
    options: DSANConfig

    def __init__(self, setup: Setup, options: DSANConfig) -> None:
        super().__init__(setup, options)
        self.progress = Progress(setup)
        self.memory["calls"] = self.progress.count

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        """See ``Partner.loss``."""
        weight = self.options.weight * ramp(self.progress.share, self.options.gamma)
        self.progress.advance()
        labels = batch.labels[: batch.num_labelled]
        discrepancy = lmmd(labelled.features, weak.features, labels, probabilities(weak.logits))
        return {"lmmd": weight * discrepancy}
