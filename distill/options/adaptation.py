"""Options of the partners for domain adaptation: labelled images are the source, unlabelled ones the target."""

from dataclasses import dataclass

from distill.options.common import not_negative
from featstore.sources.config import require


@dataclass(frozen=True, kw_only=True)
class DANConfig:
    """Partner ``dan``: multi-kernel MMD between source and target features (Long et al. 2015)."""

    weight: float = 0.5
    """Weight of the term [C]."""

    def __post_init__(self) -> None:
        not_negative("dan", self, "weight")


@dataclass(frozen=True, kw_only=True)
class DeepCORALConfig:
    """Partner ``deepcoral``: distance of the two covariances (Sun and Saenko 2016)."""

    weight: float = 10.0
    """Weight of the term [C]."""

    def __post_init__(self) -> None:
        not_negative("deepcoral", self, "weight")


@dataclass(frozen=True, kw_only=True)
class DANNConfig:
    """Partner ``dann``: a discriminator of the domains behind a reversed gradient (Ganin et al. 2016)."""

    weight: float = 1.0
    """Weight of the term [C]."""
    gamma: float = 1.0
    """The reversed gradient is scaled by 2 / (1 + exp(-gamma p)) - 1, p = 0 to 1 over training. 1: DeepDA and
    TLlib [C]; 10: the paper [M]."""
    width: int = 256
    """Of the discriminator's two hidden layers [C]."""

    def __post_init__(self) -> None:
        not_negative("dann", self, "weight", "gamma")
        require(self.width > 0, f"--dann.width {self.width} must be positive.")


@dataclass(frozen=True, kw_only=True)
class DSANConfig:
    """Partner ``dsan``: MMD within every class that source and target share in a batch (Zhu et al. 2020)."""

    weight: float = 0.5
    """Weight of the term [C]."""
    gamma: float = 10.0
    """The weight is scaled by 2 / (1 + exp(-gamma p)) - 1, p = 0 to 1 over training. 10: the authors; 1: DeepDA [C]."""

    def __post_init__(self) -> None:
        not_negative("dsan", self, "weight", "gamma")


@dataclass(frozen=True, kw_only=True)
class SENTRYConfig:
    """Partner ``sentry``: sharpen what strong views agree on, unlearn what they do not (Prabhu et al. 2021)."""

    source_epochs: int = 10
    """Epochs of training on the source alone before adaptation; the authors take 20 [C]."""
    w_entropy: float = 1.0
    """Weight of the two entropy terms [C]."""
    w_frequency: float = 0.1
    """Weight of the term that pushes away from frequently predicted classes [C]."""
    committee: int = 3
    """Strong views that vote [C]."""
    queue: int = 256
    """Latest predictions that the frequencies are taken from [C]."""

    def __post_init__(self) -> None:
        not_negative("sentry", self, "source_epochs", "w_entropy", "w_frequency")
        for name in ("committee", "queue"):
            value = getattr(self, name)
            require(value > 0, f"--sentry.{name} {value} must be positive.")


@dataclass(frozen=True, kw_only=True)
class SHOTConfig:
    """Partner ``shot``: source training, then adaptation without source labels and with a frozen head
    (Liang et al. 2020)."""

    source_epochs: int = 10
    """Epochs of training on the source before adaptation; the authors take 20, and 15 for the target [C]."""
    label_smoothing: float = 0.1
    """Of the cross entropy on the source [C]."""
    w_information: float = 1.0
    """Weight of the information maximisation: mean entropy minus entropy of the mean [C]."""
    w_pseudo: float = 0.3
    """Weight of the cross entropy to the pseudo-labels of the epoch [C]."""

    def __post_init__(self) -> None:
        not_negative("shot", self, "source_epochs", "w_information", "w_pseudo")
        require(
            0 <= self.label_smoothing < 1,
            f"--shot.label_smoothing {self.label_smoothing} must be at least 0 and below 1.",
        )
