"""What the semi-supervised partners share: a guess on the weak view, trust in it, and training of the strong view."""

# L labelled images of a step, U unlabelled ones, K classes

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from distill.config import DistillConfig
from distill.data.pictures import Batch
from distill.losses import semisupervised as losses
from distill.methods.base import Needs, Output, Setup
from distill.methods.probe_logits import probe_layer
from distill.options.semisupervised import LabelsFrom
from distill.partners.base import Partner
from distill.student.model import Student


def label_needs(labels_from: LabelsFrom) -> Needs:
    """Unlabelled images, and their stored vectors if the probe guesses."""
    return Needs(unlabelled=True, vector=labels_from == "probe")


class SelfTraining(Partner):
    """Base: guesses, a term made of them, and a record of how much of them is used.

    Args:
        setup: of the run.
        weight: of the term.
        labels_from: who guesses.
    """

    def __init__(self, setup: Setup, *, weight: float, labels_from: LabelsFrom = "student") -> None:
        super().__init__(setup)
        self.weight = weight
        self.num_classes = setup.samples.num_classes
        self.probe = probe_layer(setup.probe, setup.device) if labels_from == "probe" else None
        self.memory["used"] = torch.zeros(2, device=setup.device)  # sum of shares, number of them

    @classmethod
    def strong_views(cls, config: DistillConfig) -> int:
        """One."""
        return 1

    def guess(self, weak: Output, batch: Batch) -> Tensor:
        """(U, K) float32 class probabilities of the unlabelled images, without gradient."""
        if self.probe is None:
            return losses.probabilities(weak.logits)
        assert batch.teacher is not None  # label_needs
        return losses.probabilities(self.probe(batch.teacher[batch.num_labelled :]))

    def terms(self, logits_UK: Tensor, labels_U: Tensor, weight_U: Tensor) -> dict[str, Tensor]:
        """The weighted terms, from the logits that are trained and the trusted guesses."""
        return {"unlabelled": self.weight * losses.pseudo_label_ce(logits_UK, labels_U, weight_U)}

    def record(self, weight_U: Tensor) -> None:
        """Remember which share of the images was used."""
        share = self.setup.gather(weight_U.float().mean().reshape(1)).mean()
        self.memory["used"] += torch.stack([share, torch.ones_like(share)])

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Mean weight of the unlabelled images over the epoch."""
        total, count = self.memory["used"].tolist()
        self.memory["used"].zero_()
        return {"partner/used": total / max(count, 1)}


class TrustedGuess(SelfTraining):
    """Base: the strong view learns the class that is guessed on the weak view, as far as the guess is trusted."""

    @abstractmethod
    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """(U,) 0 to 1: the weight of each guess. Statistics that the partner keeps are brought up to date here."""

    def loss(
        self,
        labelled: Output,
        weak: Output,
        strong: Sequence[Output],
        batch: Batch,
        student: Student,
    ) -> dict[str, Tensor]:
        """See ``Partner.loss``."""
        probability = self.guess(weak, batch)
        weight = self.trust(probability, batch)
        self.record(weight)
        return self.terms(strong[0].logits, probability.argmax(1), weight)


def follow(mean: Tensor, value: Tensor, *, momentum: float) -> None:
    """Move a moving mean, in place: mean <- momentum mean + (1 - momentum) value."""
    mean.lerp_(value, 1 - momentum)
