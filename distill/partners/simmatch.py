"""``simmatch``: classes and similarities to labelled images must agree (Zheng et al. 2022, arXiv:2203.06915).

    e     = embedding of a view: Linear, ReLU, Linear on the feature, l2-normalised
    p     = weak view's class probabilities, aligned to uniform by the mean of the last ``queue`` batches
    s     = softmax(e_weak bank / 0.1), bank = embeddings of all labelled images
    p'    = 0.9 p + 0.1 sum of s over each class
    s'    = s weighed by p of each labelled image's class, normalised
    loss  = weight mean_u [max p' >= 0.95] CE(z_strong, p') + w_instance mean_u CE(e_strong bank / 0.1, s')    (USB)

As USB does for CIFAR, the student itself is the teacher, and the bank is a moving mean; for ImageNet the authors
take a moving average of the student instead, which is not offered. The first epoch fills the bank: until then p' is p
and the instance term is zero.
"""

# L labelled images of a step, U unlabelled ones, N all labelled images, E width of the embedding, K classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.lazy import F, Tensor, torch
from distill.losses.semisupervised import aggregate, align, soft_label_ce, unfold
from distill.methods.base import Batch, Output, Setup, Side
from distill.options import CheckedOptions
from distill.partners.places import Places, last_of_each
from distill.partners.progress import Progress
from distill.partners.selftraining import SelfTraining


@dataclass(frozen=True, kw_only=True)
class SimMatchConfig(
    CheckedOptions,
    name="simmatch",
    positive=("temperature", "queue", "width"),
    share=("threshold", "smoothing"),
    momentum=("bank_momentum",),
):
    """Partner ``simmatch``: classes and similarities to labelled images must agree (Zheng et al. 2022).

    ImageNet with 1 % labels, by the authors: threshold 0.7, weight 10, w_instance 5.
    """

    weight: float = 1.0
    """Weight of the cross entropy on predicted class probabilities."""
    w_instance: float = 1.0
    """Weight of the cross entropy between similarities to labelled images."""
    threshold: float = 0.95
    """Least probability at which a predicted class is trusted, 0 to 1."""
    temperature: float = 0.1
    """Temperature of the similarities."""
    smoothing: float = 0.9
    """Share of the student's own class probabilities; the rest comes from similar labelled images. 0 to 1."""
    bank_momentum: float = 0.7
    """Share of the old embedding that is kept when a labelled image is seen again, 0 to below 1."""
    queue: int = 32
    """Batches over whose mean prediction the predictions are aligned."""
    width: int = 128
    """Width of the embedding."""


SIDE = "simmatch"


class SimMatch(SelfTraining):
    """See the top of this file."""

    Options = SimMatchConfig
    options: SimMatchConfig

    def __init__(self, setup: Setup, options: SimMatchConfig) -> None:
        super().__init__(setup, options)
        from distill.partners.modules import UnitEmbedding

        device, width = setup.device, self.options.width
        self.embedding = UnitEmbedding(setup.student_width, width)
        self.places = Places(setup.split.labelled, device)
        self.labels_N = setup.labels_of(self.places.members)
        self.progress = Progress(setup, self.memory)
        # Zero is the one vector that a moving mean of any momentum leaves at once for the first embedding's direction.
        self.memory["bank_NE"] = torch.zeros(len(self.places), width, device=device)
        self.memory["queue"] = torch.zeros(self.options.queue, self.num_classes, device=device)

    def student_sides(self) -> dict[str, Side]:
        return {SIDE: Side(self.embedding)}

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        bank_NE = self.memory["bank_NE"].clone()
        filled = self.progress.epoch > 0
        probability = self._aligned(self.guess(weak, batch))
        similarity = F.softmax(self._similarity(weak.projected[SIDE].detach(), bank_NE), dim=1)
        instance = soft_label_ce(
            self._similarity(strong[0].projected[SIDE], bank_NE),
            unfold(similarity, probability, self.labels_N),
            torch.ones_like(probability[:, 0]),
        )
        if filled:
            near = aggregate(similarity, self.labels_N, self.num_classes)
            probability = probability.lerp(near, 1 - self.options.smoothing)
        mask = (probability.amax(1) >= self.options.threshold).float()
        self.record(mask)
        self._remember(labelled.projected[SIDE].detach(), batch)
        self.progress.advance()
        return {
            "unlabelled": self.weight * soft_label_ce(strong[0].logits, probability, mask),
            # Zero instead of absent: every parameter of a side must get a gradient at every step.
            "instance": self.options.w_instance * filled * instance,
        }

    def _similarity(self, embedding_BE: Tensor, bank_NE: Tensor) -> Tensor:
        return embedding_BE @ bank_NE.T / self.options.temperature

    def _aligned(self, probability_UK: Tensor) -> Tensor:
        queue = self.memory["queue"]
        queue[int(self.progress.count) % len(queue)] = self.setup.gather(probability_UK).mean(0)
        seen = queue[: int(self.progress.count) + 1]
        return align(probability_UK, torch.full_like(seen[0], 1 / self.num_classes), seen.mean(0))

    def _remember(self, embedding_LE: Tensor, batch: Batch) -> None:
        place = self.setup.gather(self.places(batch.indices[: batch.num_labelled]))
        embedding_LE = self.setup.gather(embedding_LE)
        last = last_of_each(place)
        bank_NE, place, embedding_LE = self.memory["bank_NE"], place[last], embedding_LE[last]
        new = bank_NE[place].lerp(embedding_LE, 1 - self.options.bank_momentum)
        bank_NE[place] = F.normalize(new, dim=1)
