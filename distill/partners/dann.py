"""``dann``: a discriminator of source and target behind a reversed gradient (Ganin et al. 2016, arXiv:1505.07818).

    weight 0.5 (BCE(d(f_source), 1) + BCE(d(f_target), 0)),   d = 256-256-1 with batch norm and ReLU     (DeepDA)

The student gets the gradient times -(2 / (1 + exp(-gamma p)) - 1), p = 0 to 1 over training. The discriminator sees
both domains in one pass, so its batch norm has one set of statistics; DeepDA calls it once per domain. Its input is
the student's feature; no bottleneck is added.
"""

# B batch, C student width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.lazy import Tensor
from distill.losses.adaptation import domain_bce, ramp
from distill.methods.base import Batch, Output, Setup, Side
from distill.options import CheckedOptions
from distill.partners.base import Partner
from distill.partners.progress import Progress


@dataclass(frozen=True, kw_only=True)
class DANNConfig(CheckedOptions, name="dann", positive=("width",)):
    """Partner ``dann``: a discriminator of the domains behind a reversed gradient (Ganin et al. 2016)."""

    weight: float = 1.0
    """Weight of this partner's term beside the method's loss."""
    gamma: float = 1.0
    """Growth of the reversed gradient, 2 / (1 + exp(-gamma p)) - 1 with p from 0 to 1 over training; paper: 10."""
    width: int = 256
    """Width of the discriminator's two hidden layers."""


SIDE = "dann"


class DANN(Partner):
    """See the top of this file."""

    Options = DANNConfig
    options: DANNConfig

    def __init__(self, setup: Setup, options: DANNConfig) -> None:
        super().__init__(setup, options)
        from distill.partners.modules import Discriminator

        self.discriminator = Discriminator(setup.student_width, self.options.width)
        self.progress = Progress(setup, self.memory)

    def student_sides(self) -> dict[str, Side]:
        return {SIDE: Side(self.discriminator)}

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        bce = domain_bce(labelled.projected[SIDE], weak.projected[SIDE])
        self.progress.advance()
        self._set_factor()
        return {"domain": self.options.weight * bce}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._set_factor()

    def _set_factor(self) -> None:
        """Set the factor of the next forward pass."""
        self.discriminator.factor = ramp(self.progress.share, self.options.gamma)
