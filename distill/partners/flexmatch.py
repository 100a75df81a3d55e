"""``flexmatch``: FixMatch with a threshold per class (Zhang et al. 2021, arXiv:2110.08263).

    beta_c = images whose last confident guess was c / largest such count, "none so far" being a count too
    mask   = max p_u >= 0.95 beta_c / (2 - beta_c),  c = argmax p_u                           (USB [C])

The count is kept per sample and over all processes; the mask of a batch uses the counts before that batch.
"""

# U unlabelled images of a step, K classes

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor, torch
from distill.losses.semisupervised import flexmatch_threshold
from distill.methods.base import Batch, Setup
from distill.options import CheckedOptions, LabelsFrom
from distill.partners.places import Places, last_of_each
from distill.partners.selftraining import TrustedGuess


@dataclass(frozen=True, kw_only=True)
class FlexMatchConfig(CheckedOptions, name="flexmatch", share=("threshold",)):
    """Partner ``flexmatch``: FixMatch with a lower threshold for classes that are learnt slowly (Zhang et al. 2021)."""

    weight: float = 1.0
    """Weight of this partner's term beside the method's loss."""
    threshold: float = 0.95
    """Threshold of the class that is learnt best, and least probability at which an image counts as learnt; 0 to 1."""
    labels_from: LabelsFrom = "student"
    """Where the label of an unlabelled image comes from: the student's prediction on the weak view (student), or the
    linear probe's on the stored feature (probe)."""


NONE = -1
"""Last confident guess of an image that had none so far."""


class FlexMatch(TrustedGuess):
    """See the top of this file."""

    Options = FlexMatchConfig
    options: FlexMatchConfig

    def __init__(self, setup: Setup, options: FlexMatchConfig) -> None:
        super().__init__(setup, options)
        self.places = Places(setup.split.unlabelled, setup.device)
        self.memory["guessed"] = torch.full((len(self.places),), NONE, device=setup.device)

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """1 from the threshold of the guessed class on."""
        guessed = self.memory["guessed"]
        counts = torch.bincount(guessed - NONE, minlength=self.num_classes + 1)
        threshold_K = flexmatch_threshold(counts, self.options.threshold)
        confidence, label = probability_UK.max(1)
        mask = confidence >= threshold_K[label]
        place = self.places(batch.indices[batch.num_labelled :])
        self._remember(*(self.setup.gather(value) for value in (place, label, confidence)))
        return mask.float()

    def _remember(self, place: Tensor, label: Tensor, confidence: Tensor) -> None:
        sure = confidence >= self.options.threshold
        place, label = place[sure], label[sure]
        last = last_of_each(place)
        self.memory["guessed"][place[last]] = label[last]
