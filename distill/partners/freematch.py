"""``freematch``: thresholds that follow the student's confidence, and fairness (Wang et al. 2023, arXiv:2205.07246).

    tau, p, h = moving means of max p_u, of p_u, and of the histogram of argmax p_u; all start uniform
    mask      = max p_u >= tau p_c / max p,  c = argmax p_u
    loss      = weight mean_u mask CE(z_strong, c) + w_fairness fairness(strong, mask, p, h)    (USB [C])

The moving means are over all processes and include the batch at hand; fairness is over a process's own strong views.
"""

# U unlabelled images of a step, K classes

from __future__ import annotations

from dataclasses import dataclass

from distill.lazy import F, Tensor, torch
from distill.losses.semisupervised import freematch_fairness, freematch_threshold
from distill.methods.base import Batch, Setup
from distill.options import CheckedOptions, LabelsFrom
from distill.partners.selftraining import TrustedGuess, follow


@dataclass(frozen=True, kw_only=True)
class FreeMatchConfig(CheckedOptions, name="freematch", momentum=("momentum",)):
    """Partner ``freematch``: thresholds that follow the student's own confidence, and fairness (Wang et al. 2023)."""

    weight: float = 1.0
    """Weight of the cross entropy on predicted labels."""
    w_fairness: float = 0.01
    """Weight of the fairness term; the authors use 0.001 for CIFAR-100 with 400 labels."""
    momentum: float = 0.999
    """Momentum of the moving averages per step, 0 to below 1; 0.99 suits runs of a few hundred steps."""
    labels_from: LabelsFrom = "student"
    """Where the label of an unlabelled image comes from: the student's prediction on the weak view (student), or the
    linear probe's on the stored feature (probe)."""


class FreeMatch(TrustedGuess):
    """See the top of this file."""

    Options = FreeMatchConfig
    options: FreeMatchConfig

    def __init__(self, setup: Setup, options: FreeMatchConfig) -> None:
        super().__init__(setup, options)
        uniform = torch.full((self.num_classes,), 1 / self.num_classes, device=setup.device)
        self.memory["mean"] = uniform[0].clone()
        self.memory["mean_K"] = uniform.clone()
        self.memory["histogram_K"] = uniform.clone()

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """1 from the threshold of the guessed class on."""
        everyone = self.setup.gather(probability_UK)
        confidence, label = everyone.max(1)
        found = {
            "mean": confidence.mean(),
            "mean_K": everyone.mean(0),
            "histogram_K": F.one_hot(label, self.num_classes).float().mean(0),
        }
        for name, value in found.items():
            follow(self.memory[name], value, momentum=self.options.momentum)
        threshold_K = freematch_threshold(self.memory["mean"], self.memory["mean_K"])
        confidence, label = probability_UK.max(1)
        return (confidence >= threshold_K[label]).float()

    def terms(self, logits_UK: Tensor, labels_U: Tensor, weight_U: Tensor) -> dict[str, Tensor]:
        """Adds fairness."""
        fairness = freematch_fairness(
            logits_UK, weight_U > 0, self.memory["mean_K"], self.memory["histogram_K"]
        )
        return {
            **super().terms(logits_UK, labels_U, weight_U),
            "fairness": self.options.w_fairness * fairness,
        }
