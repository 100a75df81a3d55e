"""``freematch``: thresholds that follow the student's confidence, and fairness (Wang et al. 2023, arXiv:2205.07246).

    tau, p, h = moving means of max p_u, of p_u, and of the histogram of argmax p_u; all start uniform
    mask      = max p_u >= tau p_c / max p,  c = argmax p_u
    loss      = weight mean_u mask CE(z_strong, c) + w_fairness fairness(strong, mask, p, h)    (USB [C])

The moving means are over all processes and include the batch at hand; fairness looks at a process's own strong views.
"""

# U unlabelled images of a step, K classes

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.config import DistillConfig
from distill.data.pictures import Batch
from distill.losses.semisupervised import freematch_fairness, freematch_threshold
from distill.methods.base import Needs, Setup
from distill.partners.selftraining import TrustedGuess, follow, label_needs


class FreeMatch(TrustedGuess):
    """See the top of this file."""

    def __init__(self, setup: Setup) -> None:
        self.options = setup.config.freematch
        super().__init__(setup, weight=self.options.weight, labels_from=self.options.labels_from)
        uniform = torch.full((self.num_classes,), 1 / self.num_classes, device=setup.device)
        self.memory["mean"] = uniform[0].clone()
        self.memory["mean_K"] = uniform.clone()
        self.memory["histogram_K"] = uniform.clone()

    @classmethod
    def needs(cls, config: DistillConfig) -> Needs:
        """See ``label_needs``."""
        return label_needs(config.freematch.labels_from)

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
