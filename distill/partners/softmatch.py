"""``softmatch``: every guess counts, by how confident it is (Chen et al. 2023, arXiv:2301.10921).

    p'       = p_u aligned to the uniform distribution, by the moving mean of p_u
    mu, var  = moving mean and variance of max p'; they start at 1 / K and 1
    loss     = weight mean_u exp(-min(max p' - mu, 0)^2 / (2 var / 4)) CE(z_strong, argmax p_u)    (USB [C])

Alignment is for the weight alone; the class is that of the unaligned guess. The moving means are over all processes and
include the batch at hand.
"""

# U unlabelled images of a step, K classes

import torch
from torch import Tensor

from distill.config import DistillConfig
from distill.data.pictures import Batch
from distill.losses.semisupervised import align, softmatch_weight
from distill.methods.base import Needs, Setup
from distill.partners.progress import Progress
from distill.partners.selftraining import TrustedGuess, follow, label_needs


class SoftMatch(TrustedGuess):
    """See the top of this file."""

    def __init__(self, setup: Setup) -> None:
        self.options = setup.config.softmatch
        super().__init__(setup, weight=self.options.weight, labels_from=self.options.labels_from)
        uniform = torch.full((self.num_classes,), 1 / self.num_classes, device=setup.device)
        self.uniform_K = uniform
        self.memory["mean"] = uniform[0].clone()
        self.memory["variance"] = torch.ones((), device=setup.device)
        self.memory["mean_K"] = uniform.clone()
        self.progress = Progress(setup)
        self.memory["calls"] = self.progress.count

    @classmethod
    def needs(cls, config: DistillConfig) -> Needs:
        """See ``label_needs``."""
        return label_needs(config.softmatch.labels_from)

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """The truncated Gaussian of the aligned confidence."""
        everyone, momentum = self.setup.gather(probability_UK), self.options.momentum
        first = not self.progress.count  # the mean that is aligned starts at the first batch [C]
        follow(self.memory["mean_K"], everyone.mean(0), momentum=0 if first else momentum)
        confidence = align(everyone, self.uniform_K, self.memory["mean_K"]).amax(1)
        # Unbiased [C]; one image alone has no variance.
        variance = confidence.var(correction=min(1, len(confidence) - 1))
        follow(self.memory["mean"], confidence.mean(), momentum=momentum)
        follow(self.memory["variance"], variance, momentum=momentum)
        self.progress.advance()
        own = align(probability_UK, self.uniform_K, self.memory["mean_K"]).amax(1)
        return softmatch_weight(
            own, self.memory["mean"], self.memory["variance"], n_sigma=self.options.n_sigma
        )
