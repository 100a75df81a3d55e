"""``pseudo_label``: the weak view is trained on its own confident argmax (Lee 2013; as in USB [C]).

    w mean_u [max p_u >= 0.95] CE(z_u, argmax p_u),   w rising linearly to ``weight`` over 0.4 of all steps

No strong view is needed. USB keeps the unlabelled pass out of the batch norm statistics; here all images share a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.lazy import Tensor
from distill.methods.base import Batch, Output, Setup
from distill.options import CheckedOptions, LabelsFrom
from distill.partners.progress import Progress
from distill.partners.selftraining import TrustedGuess


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig(
    CheckedOptions,
    name="pseudo_label",
    share=(
        "threshold",
        "warmup",
    ),
):
    """Partner ``pseudo_label``: a confident weak view is trained on its own argmax (Lee 2013, as in USB)."""

    weight: float = 1.0
    """Weight of the term at the end of the warm-up, beside the method's loss."""
    threshold: float = 0.95
    """Least probability at which a predicted class is trusted, 0 to 1."""
    warmup: float = 0.4
    """Share of all steps in which the weight rises from zero, 0 to 1."""
    labels_from: LabelsFrom = "student"
    """Where the label of an unlabelled image comes from: the student's prediction on the weak view (student), or the
    linear probe's on the stored feature (probe)."""


class PseudoLabel(TrustedGuess):
    """See the top of this file."""

    Options = PseudoLabelConfig
    options: PseudoLabelConfig

    def __init__(self, setup: Setup, options: PseudoLabelConfig) -> None:
        super().__init__(setup, options)
        self.progress = Progress(setup)
        self.memory["calls"] = self.progress.count

    @classmethod
    def strong_views(cls, options: PseudoLabelConfig) -> int:
        """None."""
        return 0

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """1 from the threshold on."""
        return (probability_UK.amax(1) >= self.options.threshold).float()

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        """See ``Partner.loss``."""
        warmup = self.options.warmup
        rise = min(self.progress.share / warmup, 1.0) if warmup else 1.0
        self.progress.advance()
        terms = super().loss(labelled, weak, [weak], batch)
        return {name: rise * term for name, term in terms.items()}
