"""``shot``: adaptation without source labels and with a frozen head (Liang et al. 2020, arXiv:2002.08546).

    source phase   CE(z_s, y) with label smoothing 0.1, ``source_epochs`` epochs
    target phase   w_information (mean H(p) - H(mean p)) + 0.3 CE(z_t, pseudo-label);   the head does not change

Pseudo-labels are made at the start of each epoch of the target phase, from the student's features and predictions on
all target images: the class of the nearest centroid by cosine, centroids being means of the l2-normalised features
weighted by the predicted probabilities, and then once more with centroids of those classes.

Its own cross entropy replaces the method's "ce" in all epochs. docs/partners.md lists the differences from the authors'
code.
"""

# N all target images, T those of a step, C student width, K classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.lazy import F, Tensor, nn, torch
from distill.losses.adaptation import information_maximisation
from distill.losses.semisupervised import pseudo_label_ce
from distill.methods.base import Batch, Output, Setup, Student
from distill.options import CheckedOptions
from distill.partners.base import Partner
from distill.partners.places import Places
from distill.partners.progress import Progress, check_source_epochs


@dataclass(frozen=True, kw_only=True)
class SHOTConfig(CheckedOptions, name="shot", momentum=("label_smoothing",)):
    """Partner ``shot``: source training, then adaptation without source labels and with a frozen head
    (Liang et al. 2020)."""

    source_epochs: int = 10
    """Epochs on labelled images before adaptation starts; the authors use 20."""
    label_smoothing: float = 0.1
    """Label smoothing of the cross entropy on labelled images, 0 to below 1."""
    w_information: float = 1.0
    """Weight of information maximisation: mean entropy minus entropy of the mean prediction."""
    w_pseudo: float = 0.3
    """Weight of the cross entropy on the pseudo-labels of the epoch."""


def cosine_pseudo_labels(features_NC: Tensor, logits_NK: Tensor) -> Tensor:
    """Class of the nearest centroid by cosine: centroids by predicted probabilities, then once by those classes.

    Args:
        features_NC: (N, C).
        logits_NK: (N, K); a class that is no image's argmax has no centroid.

    Returns:
        (N,) int64.
    """
    features = F.normalize(features_NC.float(), dim=1)
    share_NK = F.softmax(logits_NK.float(), dim=1)
    labels = logits_NK.argmax(1)
    for _ in range(2):
        found_K = torch.bincount(labels, minlength=share_NK.shape[1]) > 0
        # The length of a centroid does not matter to a cosine: sums do for means.
        centroids_KC = F.normalize(share_NK.T @ features, dim=1)
        cosine_NK = (features @ centroids_KC.T).masked_fill(~found_K, -torch.inf)
        labels = cosine_NK.argmax(1)
        share_NK = F.one_hot(labels, share_NK.shape[1]).float()
    return labels


class SHOT(Partner):
    """See the top of this file.

    Raises:
        ConfigError: no epoch is left for adaptation.
    """

    Options = SHOTConfig
    options: SHOTConfig

    def __init__(self, setup: Setup, options: SHOTConfig) -> None:
        super().__init__(setup, options)
        check_source_epochs("shot", self.options.source_epochs, setup)
        self.places = Places(setup.split.unlabelled, setup.device)
        self.progress = Progress(setup, self.memory)
        self.memory["labels_N"] = torch.zeros(
            len(self.places), dtype=torch.int64, device=setup.device
        )

    def uses_labels(self, epoch: int) -> bool:
        """Never: the source phase has its own, smoothed cross entropy."""
        return False

    def frozen(self, epoch: int, student: Student) -> list[nn.Parameter]:
        """The head, once the target phase has begun."""
        return list(student.head.parameters()) if epoch >= self.options.source_epochs else []

    def begin_epoch(self, epoch: int, student: Student) -> dict[str, float]:
        """Make the pseudo-labels of the epoch."""
        if epoch < self.options.source_epochs:
            return {}
        features, logits = self.setup.predict(self.places.members)
        labels = cosine_pseudo_labels(features, logits)
        self.memory["labels_N"].copy_(labels)
        return {"partner/relabelled": float((labels != logits.argmax(1)).float().mean())}

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        epoch = self.progress.epoch
        self.progress.advance()
        if epoch < self.options.source_epochs:
            smooth = F.cross_entropy(
                labelled.logits.float(),
                batch.labels[: batch.num_labelled],
                label_smoothing=self.options.label_smoothing,
            )
            return {"source": smooth}
        labels = self.memory["labels_N"][self.places(batch.indices[batch.num_labelled :])]
        everyone = torch.ones_like(weak.logits[:, 0])
        return {
            "information": self.options.w_information * information_maximisation(weak.logits),
            "pseudo": self.options.w_pseudo * pseudo_label_ce(weak.logits, labels, everyone),
        }
