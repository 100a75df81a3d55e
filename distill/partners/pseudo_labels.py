"""``pseudo_label``, ``fixmatch``, ``flexmatch``, ``freematch``, ``softmatch``: train on confident predicted labels.

p_u is softmax of the weak view's logits, without gradient and not sharpened; the strong view's logits are trained on
c = argmax p_u. The partners differ in the weight of each image (``trust``). Formulas follow USB, the benchmark of
Microsoft (Semi-supervised-learning). Statistics and counts are over all processes.
"""

# U unlabelled images of a step, K classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.lazy import F, Tensor, torch
from distill.losses.semisupervised import (
    align,
    flexmatch_threshold,
    freematch_fairness,
    freematch_threshold,
    softmatch_weight,
)
from distill.methods.base import Batch, Output, Setup
from distill.options import CheckedOptions, LabelsFrom
from distill.partners.places import Places, last_of_each
from distill.partners.progress import Progress
from distill.partners.selftraining import TrustedGuess, follow


@dataclass(frozen=True, kw_only=True)
class PredictedLabels(CheckedOptions, name=""):
    """Options that these partners share."""

    weight: float = 1.0
    """Weight of this partner's term beside the method's loss."""
    labels_from: LabelsFrom = "student"
    """Where the label of an unlabelled image comes from: the student's prediction on the weak view (student), or the
    linear probe's on the stored feature (probe)."""


@dataclass(frozen=True, kw_only=True)
class FixMatchConfig(PredictedLabels, name="fixmatch", share=("threshold",)):
    """Partner ``fixmatch``: the strong view learns the confident argmax of the weak one (Sohn et al. 2020)."""

    threshold: float = 0.95
    """Least probability at which a predicted class is trusted, 0 to 1."""


class FixMatch(TrustedGuess):
    """weight mean_u [max p_u >= 0.95] CE(z_strong, c), arXiv:2001.07685."""

    Options = FixMatchConfig
    options: FixMatchConfig

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """1 from the threshold on."""
        return (probability_UK.amax(1) >= self.options.threshold).float()


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig(FixMatchConfig, name="pseudo_label", share=("threshold", "warmup")):
    """Partner ``pseudo_label``: a confident weak view is trained on its own argmax (Lee 2013, as in USB)."""

    weight: float = 1.0
    """Weight of the term at the end of the warm-up, beside the method's loss."""
    warmup: float = 0.4
    """Share of all steps in which the weight rises from zero, 0 to 1."""


class PseudoLabel(FixMatch):
    """w mean_u [max p_u >= 0.95] CE(z_u, c), w rising linearly to ``weight`` over 0.4 of all steps.

    No strong view is needed. USB keeps the unlabelled pass out of the batch norm statistics; here all images share a
    pass.
    """

    Options = PseudoLabelConfig
    options: PseudoLabelConfig

    def __init__(self, setup: Setup, options: PseudoLabelConfig) -> None:
        super().__init__(setup, options)
        self.progress = Progress(setup, self.memory)

    @classmethod
    def strong_views(cls, options: Any) -> int:
        return 0

    def loss(
        self, labelled: Output, weak: Output, strong: Sequence[Output], batch: Batch
    ) -> dict[str, Tensor]:
        warmup = self.options.warmup
        rise = min(self.progress.share / warmup, 1.0) if warmup else 1.0
        self.progress.advance()
        terms = super().loss(labelled, weak, [weak], batch)
        return {name: rise * term for name, term in terms.items()}


@dataclass(frozen=True, kw_only=True)
class FlexMatchConfig(PredictedLabels, name="flexmatch", share=("threshold",)):
    """Partner ``flexmatch``: FixMatch with a lower threshold for classes that are learnt slowly (Zhang et al. 2021)."""

    threshold: float = 0.95
    """Threshold of the class that is learnt best, and least probability at which an image counts as learnt; 0 to 1."""


NONE = -1  # last confident prediction of an image that had none so far


class FlexMatch(TrustedGuess):
    """FixMatch with the threshold 0.95 beta_c / (2 - beta_c), arXiv:2110.08263.

    beta_c = images whose last confident prediction was c / largest such count, "none so far" being a count too. The
    weights of a batch use the counts before that batch.
    """

    Options = FlexMatchConfig
    options: FlexMatchConfig

    def __init__(self, setup: Setup, options: FlexMatchConfig) -> None:
        super().__init__(setup, options)
        self.places = Places(setup.split.unlabelled, setup.device)
        self.memory["guessed"] = torch.full((len(self.places),), NONE, device=setup.device)

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """1 from the threshold of the predicted class on."""
        guessed = self.memory["guessed"]
        counts = torch.bincount(guessed - NONE, minlength=self.num_classes + 1)
        threshold_K = flexmatch_threshold(counts, self.options.threshold)
        confidence, label = probability_UK.max(1)
        mask = confidence >= threshold_K[label]
        place = self.places(batch.indices[batch.num_labelled :])
        place, label, confidence = map(self.setup.gather, (place, label, confidence))
        sure = confidence >= self.options.threshold
        place, label = place[sure], label[sure]
        last = last_of_each(place)
        guessed[place[last]] = label[last]
        return mask.float()


@dataclass(frozen=True, kw_only=True)
class FreeMatchConfig(PredictedLabels, name="freematch", momentum=("momentum",)):
    """Partner ``freematch``: thresholds that follow the student's own confidence, and fairness (Wang et al. 2023)."""

    weight: float = 1.0
    """Weight of the cross entropy on predicted labels."""
    w_fairness: float = 0.01
    """Weight of the fairness term; the authors use 0.001 for CIFAR-100 with 400 labels."""
    momentum: float = 0.999
    """Momentum of the moving averages per step, 0 to below 1; 0.99 suits runs of a few hundred steps."""


class FreeMatch(TrustedGuess):
    """weight mean_u [max p_u >= tau p_c / max p] CE(z_strong, c) + w_fairness fairness, arXiv:2205.07246.

    tau, p and h are moving means of max p_u, of p_u and of the histogram of argmax p_u, which all start uniform and
    include the current batch. Fairness compares p and h with a process's own strong views.
    """

    Options = FreeMatchConfig
    options: FreeMatchConfig

    def __init__(self, setup: Setup, options: FreeMatchConfig) -> None:
        super().__init__(setup, options)
        uniform = torch.full((self.num_classes,), 1 / self.num_classes, device=setup.device)
        self.memory["mean"] = uniform[0].clone()
        self.memory["mean_K"] = uniform.clone()
        self.memory["histogram_K"] = uniform.clone()

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """1 from the threshold of the predicted class on."""
        everyone, memory = self.setup.gather(probability_UK), self.memory
        confidence, label = everyone.max(1)
        histogram = F.one_hot(label, self.num_classes).float().mean(0)
        found = {"mean": confidence.mean(), "mean_K": everyone.mean(0), "histogram_K": histogram}
        for name, value in found.items():
            follow(memory[name], value, momentum=self.options.momentum)
        confidence, label = probability_UK.max(1)
        return (confidence >= freematch_threshold(memory["mean"], memory["mean_K"])[label]).float()

    def terms(self, logits_UK: Tensor, labels_U: Tensor, weight_U: Tensor) -> dict[str, Tensor]:
        """Adds fairness."""
        mean_K, histogram_K = self.memory["mean_K"], self.memory["histogram_K"]
        fairness = freematch_fairness(logits_UK, weight_U > 0, mean_K, histogram_K)
        terms = super().terms(logits_UK, labels_U, weight_U)
        return {**terms, "fairness": self.options.w_fairness * fairness}


@dataclass(frozen=True, kw_only=True)
class SoftMatchConfig(
    PredictedLabels, name="softmatch", positive=("n_sigma",), momentum=("momentum",)
):
    """Partner ``softmatch``: no threshold but a weight that falls off like a Gaussian (Chen et al. 2023)."""

    n_sigma: float = 2.0
    """Divisor of the confidences' standard deviation, which gives the width of the Gaussian."""
    momentum: float = 0.999
    """Momentum of the moving averages per step, 0 to below 1; 0.99 suits runs of a few hundred steps."""


class SoftMatch(TrustedGuess):
    """weight mean_u exp(-min(max p' - mu, 0)^2 / (2 var / 4)) CE(z_strong, c), arXiv:2301.10921.

    p' is p_u aligned to the uniform distribution by the moving mean of p_u, for the weight alone. mu and var are moving
    mean and variance of max p'; they start at 1 / K and 1 and include the current batch.
    """

    Options = SoftMatchConfig
    options: SoftMatchConfig

    def __init__(self, setup: Setup, options: SoftMatchConfig) -> None:
        super().__init__(setup, options)
        uniform = torch.full((self.num_classes,), 1 / self.num_classes, device=setup.device)
        self.uniform_K = uniform
        self.memory["mean"] = uniform[0].clone()
        self.memory["variance"] = torch.ones((), device=setup.device)
        self.memory["mean_K"] = uniform.clone()
        self.progress = Progress(setup, self.memory)

    def trust(self, probability_UK: Tensor, batch: Batch) -> Tensor:
        """The truncated Gaussian of the aligned confidence."""
        everyone, memory, momentum = (
            self.setup.gather(probability_UK), self.memory, self.options.momentum,
        )  # fmt: skip
        first = not self.progress.count  # the mean that is aligned starts at the first batch
        follow(memory["mean_K"], everyone.mean(0), momentum=0 if first else momentum)
        confidence = align(everyone, self.uniform_K, memory["mean_K"]).amax(1)
        # Unbiased; one image alone has no variance.
        variance = confidence.var(correction=min(1, len(confidence) - 1))
        follow(memory["mean"], confidence.mean(), momentum=momentum)
        follow(memory["variance"], variance, momentum=momentum)
        self.progress.advance()
        own = align(probability_UK, self.uniform_K, memory["mean_K"]).amax(1)
        return softmatch_weight(
            own, memory["mean"], memory["variance"], n_sigma=self.options.n_sigma
        )
