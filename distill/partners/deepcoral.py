"""``deepcoral``: source and target features get one covariance (Sun and Saenko 2016, arXiv:1607.01719; DeepDA [C]).

    weight ||cov(f_s) - cov(f_t)||_F^2 / (4 C^2)

on the student's feature, C wide, over a process's batch; no bottleneck is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.lazy import Tensor
from distill.losses.adaptation import coral
from distill.methods.base import Batch, Output
from distill.options import CheckedOptions
from distill.partners.base import Partner


@dataclass(frozen=True, kw_only=True)
class DeepCORALConfig(CheckedOptions, name="deepcoral"):
    """Partner ``deepcoral``: distance of the two covariances (Sun and Saenko 2016)."""

    weight: float = 10.0
    """Weight of this partner's term beside the method's loss."""


class DeepCORAL(Partner):
    """See the top of this file."""

    Options = DeepCORALConfig
    options: DeepCORALConfig

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        """See ``Partner.loss``."""
        weight = self.options.weight
        return {"coral": weight * coral(labelled.features, weak.features)}
