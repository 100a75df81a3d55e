"""Options of the semi-supervised partners; lambda_u of the papers is ``weight``."""

from dataclasses import dataclass
from typing import Literal

from featstore.config import require

LabelsFrom = Literal["student", "probe"]
"""Who guesses the label of an unlabelled image: the student on the weak view, or the linear probe on what is stored."""


def _check_weights(option: str, values: dict[str, float]) -> None:
    for name, value in values.items():
        require(value >= 0, f"--{option}.{name} {value} must not be negative.")


def _check_shares(option: str, values: dict[str, float]) -> None:
    for name, value in values.items():
        require(0 <= value <= 1, f"--{option}.{name} {value} must lie between 0 and 1.")


def _check_momentum(option: str, value: float, name: str = "momentum") -> None:
    require(0 <= value < 1, f"--{option}.{name} {value} must be at least 0 and below 1.")


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
        _check_weights("pseudo_label", {"weight": self.weight})
        _check_shares("pseudo_label", {"threshold": self.threshold, "warmup": self.warmup})


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
        _check_weights("fixmatch", {"weight": self.weight})
        _check_shares("fixmatch", {"threshold": self.threshold})


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
        _check_weights("flexmatch", {"weight": self.weight})
        _check_shares("flexmatch", {"threshold": self.threshold})


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
        _check_weights("freematch", {"weight": self.weight, "w_fairness": self.w_fairness})
        _check_momentum("freematch", self.momentum)


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
        _check_weights("softmatch", {"weight": self.weight})
        _check_momentum("softmatch", self.momentum)
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
        _check_weights("adamatch", {"weight": self.weight})
        _check_shares("adamatch", {"threshold": self.threshold})
        _check_momentum("adamatch", self.momentum)


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
        _check_weights("simmatch", {"weight": self.weight, "w_instance": self.w_instance})
        _check_shares("simmatch", {"threshold": self.threshold, "smoothing": self.smoothing})
        _check_momentum("simmatch", self.bank_momentum, "bank_momentum")
        for name in ("temperature", "queue", "width"):
            value = getattr(self, name)
            require(value > 0, f"--simmatch.{name} {value} must be positive.")
