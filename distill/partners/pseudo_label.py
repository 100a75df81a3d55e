"""``pseudo_label``: the weak view is trained on its own confident argmax (Lee 2013; as in USB [C]).

    w mean_u [max p_u >= 0.95] CE(z_u, argmax p_u),   w rising linearly to ``weight`` over 0.4 of all steps

No strong view is needed. USB keeps the unlabelled pass out of the batch norm statistics; here all images share a pass.
"""

from collections.abc import Sequence

from torch import Tensor

from distill.config import DistillConfig
from distill.data.pictures import Batch
from distill.methods.base import Needs, Output, Setup
from distill.partners.progress import Progress
from distill.partners.selftraining import TrustedGuess, label_needs
from distill.student.model import Student


class PseudoLabel(TrustedGuess):
    """See the top of this file."""

    def __init__(self, setup: Setup) -> None:
        self.options = setup.config.pseudo_label
        super().__init__(setup, weight=self.options.weight, labels_from=self.options.labels_from)
        self.progress = Progress(setup)
        self.memory["calls"] = self.progress.count

    @classmethod
    def needs(cls, config: DistillConfig) -> Needs:
        """See ``label_needs``."""
        return label_needs(config.pseudo_label.labels_from)

    @classmethod
    def strong_views(cls, config: DistillConfig) -> int:
        """None."""
        return 0

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """1 from the threshold on."""
        return (probability_UK.amax(1) >= self.options.threshold).float()

    def loss(
        self,
        labelled: Output,
        weak: Output,
        strong: Sequence[Output],
        batch: Batch,
        student: Student,
    ) -> dict[str, Tensor]:
        """See ``Partner.loss``."""
        warmup = self.options.warmup
        rise = min(self.progress.share / warmup, 1.0) if warmup else 1.0
        self.progress.advance()
        terms = super().loss(labelled, weak, [weak], batch, student)
        return {name: rise * term for name, term in terms.items()}
