"""Base of the semi-supervised partners: predict on the weak view, weight the prediction, train the strong view."""

# L labelled images of a step, U unlabelled ones, K classes

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from distill.lazy import Tensor, torch
from distill.losses import semisupervised as losses
from distill.methods.base import Batch, Needs, Output, Setup
from distill.methods.probe_logits import probe_layer
from distill.options import LabelsFrom
from distill.partners.base import Partner


def _labels_from(options: Any) -> LabelsFrom:
    return getattr(options, "labels_from", "student")


class SelfTraining(Partner):
    """Base: predicted labels, a loss term on them, and a record of how many are used.

    The options have a ``weight``; and ``labels_from`` if the linear probe can predict the labels.
    """

    def __init__(self, setup: Setup, options: Any) -> None:
        super().__init__(setup, options)
        self.weight = options.weight
        self.num_classes = setup.samples.num_classes
        probe = setup.probe if _labels_from(options) == "probe" else None
        self.probe = None if probe is None else probe_layer(probe, setup.device)
        self.memory["used"] = torch.zeros(2, device=setup.device)  # sum of shares, number of them

    @classmethod
    def needs(cls, options: Any) -> Needs:
        """Unlabelled images, and their stored vectors if the probe predicts the labels."""
        return Needs(unlabelled=True, vector=_labels_from(options) == "probe")

    @classmethod
    def strong_views(cls, options: Any) -> int:
        return 1

    def guess(self, weak: Output, batch: Batch) -> Tensor:
        """(U, K) float32 class probabilities of the unlabelled images, without gradient."""
        if self.probe is None:
            return losses.probabilities(weak.logits)
        assert batch.teacher is not None  # needs
        return losses.probabilities(self.probe(batch.teacher[batch.num_labelled :]))

    def terms(self, logits_UK: Tensor, labels_U: Tensor, weight_U: Tensor) -> dict[str, Tensor]:
        """The weighted terms, from the logits that are trained, the predicted labels and their weights."""
        return {"unlabelled": self.weight * losses.pseudo_label_ce(logits_UK, labels_U, weight_U)}

    def record(self, weight_U: Tensor) -> None:
        """Record which share of the images was used."""
        share = self.setup.gather(weight_U.float().mean().reshape(1)).mean()
        self.memory["used"] += torch.stack([share, torch.ones_like(share)])

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Mean weight of the unlabelled images over the epoch."""
        total, count = self.memory["used"].tolist()
        self.memory["used"].zero_()
        return {"partner/used": total / max(count, 1)}


class TrustedGuess(SelfTraining):
    """Base: the strong view learns the class predicted on the weak view, weighted by ``trust``."""

    @abstractmethod
    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """(U,) weight of each prediction, 0 to 1. Updates the statistics that the partner keeps."""

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        probability = self.guess(weak, batch)
        weight = self.trust(probability, batch)
        self.record(weight)
        return self.terms(strong[0].logits, probability.argmax(1), weight)


def follow(mean: Tensor, value: Tensor, *, momentum: float) -> None:
    """Move a moving mean, in place: mean <- momentum mean + (1 - momentum) value."""
    mean.lerp_(value, 1 - momentum)
