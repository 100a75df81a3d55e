"""``adamatch``: predictions aligned to the labelled images' predictions, relative threshold (Berthelot et al. 2022).

    p'   = p_u aligned by moving mean of p_l / moving mean of p_u
    mask = max p' >= 0.95 mean max p_l
    loss = weight mean_u mask CE(z_strong, argmax p')

arXiv:2106.04732, in USB's semi-supervised form: the random interpolation of logits between two batch norm passes is
left out. Both moving means start at the first batch (our choice), include it, and are over all processes.
"""

# L labelled images of a step, U unlabelled ones, K classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.lazy import Tensor, torch
from distill.losses.semisupervised import align, probabilities
from distill.methods.base import Batch, Output, Setup
from distill.options import CheckedOptions
from distill.partners.progress import Progress
from distill.partners.selftraining import SelfTraining, follow


@dataclass(frozen=True, kw_only=True)
class AdaMatchConfig(CheckedOptions, name="adamatch", share=("threshold",), momentum=("momentum",)):
    """Partner ``adamatch``: aligned predictions, threshold relative to the labelled images (Berthelot et al. 2022)."""

    weight: float = 1.0
    """Weight of this partner's term beside the method's loss."""
    threshold: float = 0.95
    """Least probability of a predicted class, as a share of the mean confidence on labelled images; 0 to 1."""
    momentum: float = 0.999
    """Momentum of the moving averages per step, 0 to below 1; 0.99 suits runs of a few hundred steps."""


class AdaMatch(SelfTraining):
    """See the top of this file."""

    Options = AdaMatchConfig
    options: AdaMatchConfig

    def __init__(self, setup: Setup, options: AdaMatchConfig) -> None:
        super().__init__(setup, options)
        for name in ("labelled_K", "unlabelled_K"):
            self.memory[name] = torch.zeros(self.num_classes, device=setup.device)
        self.progress = Progress(setup, self.memory)

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        known = self.setup.gather(probabilities(labelled.logits))
        unlabelled = self.guess(weak, batch)
        first = not self.progress.count
        self.progress.advance()
        found = {"labelled_K": known, "unlabelled_K": self.setup.gather(unlabelled)}
        for name, value in found.items():
            momentum = 0 if first else self.options.momentum
            follow(self.memory[name], value.mean(0), momentum=momentum)
        aligned = align(unlabelled, self.memory["labelled_K"], self.memory["unlabelled_K"])
        threshold = self.options.threshold * known.amax(1).mean()
        weight = (aligned.amax(1) >= threshold).float()
        self.record(weight)
        return self.terms(strong[0].logits, aligned.argmax(1), weight)
