"""``dan``: multi-kernel MMD between source and target features (Long et al. 2015, arXiv:1502.02791; DeepDA [C]).

    weight (mean K_ss + mean K_tt - 2 mean K_st)

on the student's feature, over a process's batch. The sources put it on a 256-d bottleneck, which would change what is
exported and what methods compare; none is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.lazy import Tensor
from distill.losses.adaptation import mk_mmd
from distill.methods.base import Batch, Output
from distill.options import CheckedOptions
from distill.partners.base import Partner


@dataclass(frozen=True, kw_only=True)
class DANConfig(CheckedOptions, name="dan"):
    """Partner ``dan``: multi-kernel MMD between source and target features (Long et al. 2015)."""

    weight: float = 0.5
    """Weight of this partner's term beside the method's loss."""


class DAN(Partner):
    """See the top of this file."""

    Options = DANConfig
    options: DANConfig

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        """See ``Partner.loss``."""
        weight = self.options.weight
        return {"mmd": weight * mk_mmd(labelled.features, weak.features)}
