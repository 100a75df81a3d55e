"""Options of the semi-supervised partners; lambda_u of the papers is ``weight``."""

from dataclasses import dataclass
from typing import Literal

from distill.options.common import momentum, not_negative, share
from featstore.sources.config import require

LabelsFrom = Literal["student", "probe"]
"""Who guesses the label of an unlabelled image: the student on the weak view, or the linear probe on what is stored."""


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """Partner ``pseudo_label``: a confident weak view is trained on its own argmax (Lee 2013, as in USB [C])."""

    weight: float = 1.0
    """Weight of the term, reached at the end of the warm-up."""
    threshold: float = 0.95
    """Least probability of the guessed class."""
    warmup: float = 0.4
    """Share of all steps in which the weight rises from zero [C]."""
    labels_from: LabelsFrom = "student"
    """student: the weak view's own argmax. probe: the linear probe on the stored feature [I]."""

    def __post_init__(self) -> None:
        not_negative("pseudo_label", self, "weight")
        share("pseudo_label", self, "threshold", "warmup")


@dataclass(frozen=True, kw_only=True)
class FixMatchConfig:
    """Partner ``fixmatch``: the strong view learns the confident argmax of the weak one (Sohn et al. 2020)."""

    weight: float = 1.0
    """Weight of the term."""
    threshold: float = 0.95
    """Least probability of the guessed class [C]."""
    labels_from: LabelsFrom = "student"
    """student: guess on the weak view. probe: the linear probe on the stored feature [I]."""

    def __post_init__(self) -> None:
        not_negative("fixmatch", self, "weight")
        share("fixmatch", self, "threshold")


@dataclass(frozen=True, kw_only=True)
class FlexMatchConfig:
    """Partner ``flexmatch``: FixMatch with a lower threshold for classes that are learnt slowly (Zhang et al. 2021)."""

    weight: float = 1.0
    """Weight of the term."""
    threshold: float = 0.95
    """Threshold of the class that is learnt best, and least probability with which an image counts as learnt [C]."""
    labels_from: LabelsFrom = "student"
    """student: guess on the weak view. probe: the linear probe on the stored feature [I]."""

    def __post_init__(self) -> None:
        not_negative("flexmatch", self, "weight")
        share("flexmatch", self, "threshold")


@dataclass(frozen=True, kw_only=True)
class FreeMatchConfig:
    """Partner ``freematch``: thresholds that follow the student's own confidence, and fairness (Wang et al. 2023)."""

    weight: float = 1.0
    """Weight of the cross entropy on guessed labels."""
    w_fairness: float = 0.01
    """Weight of the fairness term (lambda_e); the authors use 0.001 for CIFAR-100 with 400 labels [C]."""
    momentum: float = 0.999
    """Of the moving means, per step [C]; 0.99 suits runs of a few hundred steps better [I]."""
    labels_from: LabelsFrom = "student"
    """student: guess on the weak view. probe: the linear probe on the stored feature [I]."""

    def __post_init__(self) -> None:
        not_negative("freematch", self, "weight", "w_fairness")
        momentum("freematch", self, "momentum")


@dataclass(frozen=True, kw_only=True)
class SoftMatchConfig:
    """Partner ``softmatch``: no threshold but a weight that falls off like a Gaussian (Chen et al. 2023)."""

    weight: float = 1.0
    """Weight of the term."""
    n_sigma: float = 2.0
    """The Gaussian's deviation is that of the confidences divided by this [C]."""
    momentum: float = 0.999
    """Of the moving means, per step [C]; 0.99 suits runs of a few hundred steps better [I]."""
    labels_from: LabelsFrom = "student"
    """student: guess on the weak view. probe: the linear probe on the stored feature [I]."""

    def __post_init__(self) -> None:
        not_negative("softmatch", self, "weight")
        momentum("softmatch", self, "momentum")
        require(self.n_sigma > 0, f"--softmatch.n_sigma {self.n_sigma} must be positive.")


@dataclass(frozen=True, kw_only=True)
class AdaMatchConfig:
    """Partner ``adamatch``: aligned guesses, threshold relative to the labelled images (Berthelot et al. 2022)."""

    weight: float = 1.0
    """Weight of the term."""
    threshold: float = 0.95
    """Least probability of the guessed class, as a share of the mean confidence on labelled images [C]."""
    momentum: float = 0.999
    """Of the moving means, per step [C]; 0.99 suits runs of a few hundred steps better [I]."""

    def __post_init__(self) -> None:
        not_negative("adamatch", self, "weight")
        share("adamatch", self, "threshold")
        momentum("adamatch", self, "momentum")


@dataclass(frozen=True, kw_only=True)
class SimMatchConfig:
    """Partner ``simmatch``: classes and similarities to labelled images must agree (Zheng et al. 2022).

    ImageNet with 1 % labels, by the authors: threshold 0.7, weight 10, w_instance 5 [C].
    """

    weight: float = 1.0
    """Weight of the cross entropy on guessed class probabilities (lambda_u)."""
    w_instance: float = 1.0
    """Weight of the cross entropy between similarities (lambda_in) [C]."""
    threshold: float = 0.95
    """Least probability of the guessed class."""
    temperature: float = 0.1
    """Of the similarities, on both sides."""
    smoothing: float = 0.9
    """Share of the student's own class probabilities; the rest comes from similar labelled images."""
    bank_momentum: float = 0.7
    """Share of the old embedding when a labelled image is seen again [C]."""
    queue: int = 32
    """Batches over whose mean prediction the guesses are aligned."""
    width: int = 128
    """Of the embedding."""

    def __post_init__(self) -> None:
        not_negative("simmatch", self, "weight", "w_instance")
        share("simmatch", self, "threshold", "smoothing")
        momentum("simmatch", self, "bank_momentum")
        for name in ("temperature", "queue", "width"):
            value = getattr(self, name)
            require(value > 0, f"--simmatch.{name} {value} must be positive.")
