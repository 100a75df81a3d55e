"""``softmatch``: every guess counts, by how confident it is (Chen et al. 2023, arXiv:2301.10921).

    p'       = p_u aligned to the uniform distribution, by the moving mean of p_u
    mu, var  = moving mean and variance of max p'; they start at 1 / K and 1
    loss     = weight mean_u exp(-min(max p' - mu, 0)^2 / (2 var / 4)) CE(z_strong, argmax p_u)    (USB [C])

Alignment is for the weight alone; the class is that of the unaligned guess. The moving means are over all processes and
include the batch at hand.
"""

# U unlabelled images of a step, K classes

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import Tensor, torch
from distill.losses.semisupervised import align, softmatch_weight
from distill.methods.base import Batch, Setup
from distill.options import CheckedOptions, LabelsFrom
from distill.partners.progress import Progress
from distill.partners.selftraining import TrustedGuess, follow


@dataclass(frozen=True, kw_only=True)
class SoftMatchConfig(
    CheckedOptions, name="softmatch", positive=("n_sigma",), momentum=("momentum",)
):
    """Partner ``softmatch``: no threshold but a weight that falls off like a Gaussian (Chen et al. 2023)."""

    weight: float = 1.0
    """Weight of this partner's term beside the method's loss."""
    n_sigma: float = 2.0
    """Divisor of the confidences' standard deviation, which gives the width of the Gaussian."""
    momentum: float = 0.999
    """Momentum of the moving averages per step, 0 to below 1; 0.99 suits runs of a few hundred steps."""
    labels_from: LabelsFrom = "student"
    """Where the label of an unlabelled image comes from: the student's prediction on the weak view (student), or the
    linear probe's on the stored feature (probe)."""


class SoftMatch(TrustedGuess):
    """See the top of this file."""

    Options = SoftMatchConfig
    options: SoftMatchConfig

    def __init__(self, setup: Setup, options: SoftMatchConfig) -> None:
        super().__init__(setup, options)
        uniform = torch.full((self.num_classes,), 1 / self.num_classes, device=setup.device)
        self.uniform_K = uniform
        self.memory["mean"] = uniform[0].clone()
        self.memory["variance"] = torch.ones((), device=setup.device)
        self.memory["mean_K"] = uniform.clone()
        self.progress = Progress(setup)
        self.memory["calls"] = self.progress.count

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
