"""Types and checks that the options of methods and partners share."""

from dataclasses import dataclass
from typing import Any, Literal

from featstore.sources.config import require

Norm = Literal["none", "standardize", "layernorm", "l2"]
"""Normalisation of the stored feature before it is compared."""

Target = Literal["teacher", "labels"]
"""Class of an image that a loss needs one for. teacher: its label where known, else the class with the largest
teacher logit. labels: its label; images without one are left out of the term."""

LabelsFrom = Literal["student", "probe"]
"""Where the label of an unlabelled image comes from: the student's prediction on the weak view, or the linear probe's
on the stored feature."""


def not_negative(part: str, options: Any, *names: str) -> None:
    """Check options of one method or partner.

    Raises:
        ConfigError: names the first one below zero.
    """
    for name in names:
        value = getattr(options, name)
        require(value >= 0, f"--{part}.{name} {value} must not be negative.")


def positive(part: str, options: Any, *names: str) -> None:
    """Check options of one method or partner.

    Raises:
        ConfigError: names the first one that is not above zero.
    """
    for name in names:
        value = getattr(options, name)
        require(value > 0, f"--{part}.{name} {value} must be positive.")


def share(part: str, options: Any, *names: str) -> None:
    """Check options of one method or partner.

    Raises:
        ConfigError: names the first one outside 0 to 1.
    """
    for name in names:
        value = getattr(options, name)
        require(0 <= value <= 1, f"--{part}.{name} {value} must lie between 0 and 1.")


def momentum(part: str, options: Any, *names: str) -> None:
    """Check options of one method or partner.

    Raises:
        ConfigError: names the first one below 0, or not below 1.
    """
    for name in names:
        value = getattr(options, name)
        require(0 <= value < 1, f"--{part}.{name} {value} must be at least 0 and below 1.")


@dataclass(frozen=True)
class NoOptions:
    """Of a method that has none."""
