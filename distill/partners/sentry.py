"""``sentry``: lower the entropy where strong views agree, raise it elsewhere (Prabhu et al. 2021, arXiv:2012.11460).

    v       = 3 strong views; an image is agreed on if most of them predict what its plain view predicts
    loss    = w_entropy (1/T) (sum over agreed of H(last agreeing view) - sum over disputed of H(last disputing view))
              + w_frequency mean_t sum_c p_c log q_c,   q = frequencies of the last 256 predictions

Adaptation begins after ``source_epochs`` epochs on the source alone. Each target image has the weight
N / (classes found x images of its class), which replaces the authors' class-balanced sampling; docs/partners.md lists
all differences from their code.
"""

# T target images of a step, N all target images, Q length of the queue, K classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.lazy import F, Tensor, torch
from distill.losses.adaptation import committee_entropy, frequent_classes
from distill.methods.base import Batch, Output, Setup, Student
from distill.options import CheckedOptions
from distill.partners.base import Partner
from distill.partners.places import Places
from distill.partners.progress import Progress, check_source_epochs


@dataclass(frozen=True, kw_only=True)
class SENTRYConfig(CheckedOptions, name="sentry", positive=("committee", "queue")):
    """Partner ``sentry``: lower the entropy where strong views agree, raise it where not (Prabhu et al. 2021)."""

    source_epochs: int = 10
    """Epochs on labelled images only before adaptation starts; the authors use 20."""
    w_entropy: float = 1.0
    """Weight of the two entropy terms."""
    w_frequency: float = 0.1
    """Weight of the term against frequently predicted classes."""
    committee: int = 3
    """Strong views per image that vote."""
    queue: int = 256
    """Number of latest predictions from which class frequencies are computed."""


NONE = -1  # an entry of the queue that is not filled yet


def balancing_weights(labels_N: Tensor, num_classes: int) -> Tensor:
    """Weights by which all classes that occur count the same: N / (classes found x images of its class).

    Args:
        labels_N: (N,) int64.
        num_classes: K.

    Returns:
        (N,) float32; their mean is 1.
    """
    counts_K = torch.bincount(labels_N, minlength=num_classes)
    found = (counts_K > 0).sum()
    return len(labels_N) / (found * counts_K[labels_N]).float()


class SENTRY(Partner):
    """See the top of this file.

    Raises:
        ConfigError: no epoch is left for adaptation.
    """

    Options = SENTRYConfig
    options: SENTRYConfig

    def __init__(self, setup: Setup, options: SENTRYConfig) -> None:
        super().__init__(setup, options)
        check_source_epochs("sentry", self.options.source_epochs, setup)
        self.num_classes = setup.samples.num_classes
        self.places = Places(setup.split.unlabelled, setup.device)
        self.progress = Progress(setup, self.memory)
        queue, device = self.options.queue, setup.device
        self.memory["weight_N"] = torch.ones(len(self.places), device=device)
        self.memory["queue_Q"] = torch.full((queue,), NONE, device=device)
        self.memory["queue_weight_Q"] = torch.zeros(queue, device=device)

    @classmethod
    def strong_views(cls, options: SENTRYConfig) -> int:
        return options.committee

    def begin_epoch(self, epoch: int, student: Student) -> dict[str, float]:
        """Weight the target images by the frequency of their predicted class."""
        if epoch < self.options.source_epochs:
            return {}
        _, logits = self.setup.predict(self.places.members)
        weight = balancing_weights(logits.argmax(1), self.num_classes)
        self.memory["weight_N"].copy_(weight)
        return {"partner/largest_weight": float(weight.max())}

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        epoch = self.progress.epoch
        self.progress.advance()
        if epoch < self.options.source_epochs:
            return {}
        weight = self.memory["weight_N"][self.places(batch.indices[batch.num_labelled :])]
        frequency = self._frequencies(weak.logits.detach().argmax(1), weight)
        entropy, _ = committee_entropy(weak.logits, [view.logits for view in strong], weight)
        frequent = frequent_classes(weak.logits, frequency, weight)
        return {
            "entropy": self.options.w_entropy * entropy,
            "frequency": self.options.w_frequency * frequent,
        }

    def _frequencies(self, label_T: Tensor, weight_T: Tensor) -> Tensor:
        """Put the batch of all processes into the queue and return the share of each class in it: (K,)."""
        for name, value in (("queue_Q", label_T), ("queue_weight_Q", weight_T)):
            queue = self.memory[name]
            queue.copy_(torch.cat([queue, self.setup.gather(value)])[-len(queue) :])
        label, weight = self.memory["queue_Q"], self.memory["queue_weight_Q"]
        classes = F.one_hot(label - NONE, self.num_classes + 1)[:, 1:].float()
        share = weight @ classes
        return share / share.sum()
